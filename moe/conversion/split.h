#pragma once

#include "moe/conversion/expert_weights.h"
#include "nn/feed_forward.h"

namespace switchyard::moe {

/// The weights of a dense two-layer perceptron with F neurons, in the layout of nn::Linear:
///   activation(x up^T + up_bias) down^T + down_bias, or with `gate`
///   (activation(x gate^T + gate_bias) * (x up^T + up_bias)) down^T + down_bias,
/// plus x with `residual`. Biases may be undefined.
struct DenseWeights {
  Tensor up;         ///< [F, D]
  Tensor up_bias;    ///< [F]
  Tensor gate;       ///< [F, D] for GLU, else undefined
  Tensor gate_bias;  ///< [F]
  Tensor down;       ///< [output width, F]
  Tensor down_bias;  ///< [output width]
  bool residual = false;
};

/// The layer's own weights: no element is copied.
DenseWeights weights_of(const nn::FeedForward& layer);

/// What the neurons of a layer are clustered by: the rows of its first matrix (of the gate for GLU) scaled to unit
/// length; a row of zeros stays 0. [F, D].
Tensor neuron_features(const DenseWeights& dense);

/// Groups the neurons by label: neuron n goes to expert labels[n] (i64 [F], each of 0..experts-1 exactly F / experts
/// times); within an expert neurons keep their order. Sums of neurons are only reordered, so the sum of all experts
/// plus last_bias is the dense layer. New tensors, in dtype and on the device of `dense`.
/// Throws Error for shapes that do not fit, an expert count that does not divide F and labels that are not balanced.
ExpertWeights split_into_experts(const DenseWeights& dense, const Tensor& labels, std::int64_t experts);

}  // namespace switchyard::moe
