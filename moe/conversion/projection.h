#pragma once

#include "moe/conversion/split.h"
#include "nn/linear.h"

namespace switchyard::moe {

/// Hidden width of the two-layer perceptron that costs `flops_factor` times what a linear projection with bias costs:
/// factor (inputs outputs + outputs) / (inputs + outputs + 1), for a square one of width d the paper's factor (d^2 + d)
/// / (2 d + 1); rounded, halves to even. Throws Error for a factor that is not positive or that leaves no neuron.
std::int64_t projection_width(std::int64_t inputs, std::int64_t outputs, double flops_factor);

struct ProjectionMlpOptions {
  std::int64_t inputs = 0, outputs = 0;
  std::int64_t hidden = 0;  ///< as of projection_width
  ops::Activation activation = ops::Activation::relu;
  bool residual = false;  ///< adds the input; needs inputs = outputs
};

/// Stands in for a linear projection of attention (query, key, value or output), so that it too can be split into
/// experts: activation(x up^T + b) down^T + b, plus x with `residual`. Parameters up.weight [hidden, inputs], up.bias,
/// down.weight [outputs, hidden], down.bias.
class ProjectionMlp : public nn::Module {
 public:
  explicit ProjectionMlp(const ProjectionMlpOptions& options, Generator& generator = nn::initial_weights());

  /// x [..., inputs] -> [..., outputs].
  Variable forward(const Variable& x) const;
  const ProjectionMlpOptions& options() const { return options_; }
  /// What split_into_experts takes: the layer's own weights. The residual connection is not part of them.
  DenseWeights weights() const;

 private:
  ProjectionMlpOptions options_;
  nn::Linear up_, down_;
};

/// Mean over all entries of (student - teacher)^2, in the compute dtype: what a projection's stand-in is trained by.
/// The teacher's output has the student's shape and gets no gradient.
Variable distillation_loss(const Variable& student, const Tensor& teacher);

}  // namespace switchyard::moe
