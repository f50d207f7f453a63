#pragma once

#include <memory>
#include <vector>

#include "nn/attention.h"
#include "nn/feed_forward.h"

/// Two-layer perceptrons that stand in for attention's projections, so that these too can be split into experts
/// (Szatkowski et al., 2024, arXiv 2310.04361).
namespace switchyard::moe {

/// Hidden width of the two-layer perceptron that costs `flops_factor` times what a linear projection with bias costs:
/// factor (inputs outputs + outputs) / (inputs + outputs + 1), for a square one of width d the paper's factor (d^2 + d)
/// / (2 d + 1); rounded, halves to even. Throws Error for a factor that is not positive or that leaves no neuron.
std::int64_t projection_width(std::int64_t inputs, std::int64_t outputs, double flops_factor);

struct StandInOptions {
  std::vector<nn::ProjectionKind> kinds{nn::kProjectionKinds.begin(), nn::kProjectionKinds.end()};
  double flops_factor = 1;                             ///< hidden width as of projection_width,
  std::int64_t multiple = 1;                           ///< rounded down to a multiple of this
  ops::Activation activation = ops::Activation::relu;  ///< between the two layers
  bool residual = false;                               ///< adds the input; needs projections that are square
};

/// An untrained perceptron with biases and the projection's inputs, outputs, dtype and device. Throws Error where the
/// hidden width is below the multiple.
std::unique_ptr<nn::FeedForward> stand_in_for(const nn::Linear& projection, const StandInOptions& options,
                                              Generator& generator = nn::initial_weights());

/// A linear projection of a model's attention.
struct ProjectionPlace {
  std::string name;  ///< its path in the model
  nn::MultiHeadAttention* attention;
  nn::ProjectionKind kind;
};
/// The projections of the given kinds below `model`, in its order. Throws Error when there are none, or where one is
/// not linear any more.
std::vector<ProjectionPlace> linear_projections(nn::Module& model, const std::vector<nn::ProjectionKind>& kinds);

/// The stand-ins for projections below `model` that are dense, in its order, with their paths in it.
std::vector<std::pair<std::string, nn::FeedForward*>> dense_stand_ins(nn::Module& model);

/// Puts untrained stand-ins in the place of the model's projections: the shape of a model whose trained ones are to be
/// read from a file.
void replace_projections(nn::Module& model, const StandInOptions& options,
                         Generator& generator = nn::initial_weights());

}  // namespace switchyard::moe
