#pragma once

#include <memory>
#include <vector>

#include "core/ops/routed_feed_forward.h"
#include "nn/linear.h"

namespace switchyard::moe {

struct NormRouterOptions {
  std::int64_t width = 0;    ///< D of the tokens it reads
  std::int64_t experts = 0;  ///< E
  std::int64_t hidden = 128;
  std::int64_t depth = 2;  ///< linear maps, at least 1
  bool bias = false;
  ops::Activation activation = ops::Activation::relu;        ///< between the linear maps
  ops::Activation output_activation = ops::Activation::abs;  ///< a norm is not negative; identity for logits
};

/// The router of a converted layer: a small perceptron that guesses, from the token alone, the norm of each expert's
/// output (Szatkowski et al., 2024, arXiv 2310.04361, section 3.3). Linear, activation, ..., linear, output activation.
/// Parameters layers.<i>.weight and, with `bias`, layers.<i>.bias, i = 0 .. depth - 1.
class NormRouter : public nn::Module {
 public:
  /// Throws Error unless width, experts, hidden and depth are at least 1.
  explicit NormRouter(const NormRouterOptions& options, Generator& generator = nn::initial_weights());

  /// x [..., D] -> scores [..., E] in the compute dtype (f32 for bf16 tokens: rounding them would change selections).
  Variable forward(const Variable& x) const;
  /// The same for an op that computes the scores itself: x [N, D] -> all but the last product, and `gate`. No
  /// gradients.
  ops::ExpertRouter before_scores(const Variable& x, const ops::Gate& gate) const;
  /// Multiplies the scores by a positive factor, for good: the last layer's weights take it. Throws Error for output
  /// activations under which that is not the same.
  void scale_scores(double factor);
  const NormRouterOptions& options() const { return options_; }

 private:
  Variable hidden(const Variable& x) const;

  NormRouterOptions options_;
  std::vector<std::unique_ptr<nn::Linear>> layers_;
};

}  // namespace switchyard::moe
