#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "autograd/variable.h"
#include "nn/optim/schedule.h"

namespace switchyard::moe {

// --- Penalties: what is added to the loss so that a feed-forward uses few neurons per token ------------------------
//
// The measures are per token: x [..., F] -> [...], in x's compute dtype (f32 for bf16). A penalty is their mean over
// the tokens. Apply them to ReLU activations; for other activations, to displaced() pre-activations.

/// (sum |x|)^2 / (sum x^2 + 1e-15) over the last axis, the square-Hoyer measure (Yang et al., 2020): between 1 (one
/// neuron active) and F (all equally). A token without active neurons has measure 0 and gradient 0.
Variable square_hoyer(const Variable& x);
/// sum |x| over the last axis.
Variable l1_norm(const Variable& x);

/// max(z, displacement) - displacement: how far pre-activations rise above a displacement such as -10, below which GELU
/// is as good as 0. Penalising it pushes them down to there.
Variable displaced(const Variable& z, double displacement);

enum class SparsityMeasure : std::uint8_t { square_hoyer, l1 };
constexpr auto names_of(SparsityMeasure) { return std::array<std::string_view, 2>{"square_hoyer", "l1"}; }
/// Mean over the tokens of a measure: x [..., F] -> a scalar.
Variable sparsity_penalty(SparsityMeasure measure, const Variable& x);

/// The penalty's weight in update i = 0, 1, ...
namespace sparsity_weight {

/// `weight` in all updates.
nn::Schedule constant(double weight);
/// From 0 up to `weight`, reached in update number `updates` and kept from then on.
nn::Schedule linear(double weight, std::int64_t updates);

}  // namespace sparsity_weight

// --- Measurement ----------------------------------------------------------------------------------------------------

/// How sparse a layer's activations were, as shares of all values seen.
struct SparsitySummary {
  double values = 0;           ///< how many were seen since the last reset
  double zero = 0;             ///< exactly 0
  double below_tenth = 0;      ///< |x| at most 1/10 of the largest |x| of the same token
  double below_hundredth = 0;  ///< |x| at most 1/100 of it
};

/// Counts of one layer, kept on its device: adding never waits for it; only summary() reads back. Once made, the
/// counts stay where they are, so that a recorded graph goes on adding to them.
class ActivationSparsity {
 public:
  /// Adds the values of x [..., F], F >= 1, floating. Activations, that is, not pre-activations.
  void add(const Tensor& x);
  void reset();
  /// Throws Error when nothing was added since the last reset.
  SparsitySummary summary() const;

 private:
  Tensor counts_;  // f64 [4]: values, zero, below a tenth, below a hundredth
};

}  // namespace switchyard::moe
