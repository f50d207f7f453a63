#pragma once

#include <vector>

#include "core/tensor.h"

namespace switchyard::ops {

/// One parameter's tensors, all dense and of one shape. `parameter` and `gradient` may be bf16; the rest are f32 (f64
/// for an f64 parameter).
struct AdamWSlot {
  Tensor parameter, gradient;
  Tensor first_moment, second_moment;
  Tensor master;  ///< the parameter in f32 where it is bf16 itself; else undefined
  double weight_decay = 0;
};

/// AdamW (Loshchilov & Hutter, 2019) on all slots: the decay is decoupled and multiplied by the learning rate, moments
/// are bias-corrected. learning_rate f64 [1], step i64 [1] (1 for the first update) and gradient_scale f64 [1] (or
/// undefined for 1) are read on the device, so that nothing waits for the host.
void adamw(const std::vector<AdamWSlot>& slots, const Tensor& learning_rate, const Tensor& step,
           const Tensor& gradient_scale, double beta1, double beta2, double epsilon);

struct SgdSlot {
  Tensor parameter, gradient;
  Tensor momentum;  ///< undefined without momentum
  Tensor master;    ///< as in AdamWSlot
  double weight_decay = 0;
};
/// parameter -= learning_rate * v with v = momentum * v + (gradient_scale gradient + weight_decay parameter).
void sgd(const std::vector<SgdSlot>& slots, const Tensor& learning_rate, const Tensor& gradient_scale, double momentum);

/// Euclidean norm of all elements of all tensors together, f64 [1] on their device.
Tensor global_norm(const std::vector<Tensor>& tensors);
/// min(1, max_norm / (norm + 1e-6)), f64 [1]: the factor of global-norm clipping.
Tensor clip_factor(const Tensor& norm, double max_norm);

}  // namespace switchyard::ops
