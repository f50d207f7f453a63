#pragma once

#include <vector>

#include "core/tensor.h"

namespace switchyard::moe {

/// How many experts the tokens of one layer ran.
struct DynamicSummary {
  double tokens = 0;
  double mean_experts = 0;        ///< run per token
  std::vector<double> histogram;  ///< [E + 1]: tokens that ran 0, 1, ..., E experts
  std::vector<double> uses;       ///< [E]: tokens that ran each expert
};

/// Counts of one layer, kept on its device: adding never waits for it; only summary() reads back. Once made, the counts
/// stay where they are, so that a recorded graph goes on adding to them.
class DynamicStatistics {
 public:
  /// Adds the choices of N tokens; mask bool [N, E].
  void add(const Tensor& mask);
  void reset();
  /// Experts that each of the last N tokens added ran, i64 [N]: for maps of compute over a text or an image. Undefined
  /// before the first add.
  const Tensor& last_counts() const { return last_counts_; }
  /// Throws Error when nothing was added since the last reset.
  DynamicSummary summary() const;

 private:
  Tensor histogram_;    // f64 [E + 1]
  Tensor uses_;         // f64 [E]
  Tensor last_counts_;  // i64 [N]
};

}  // namespace switchyard::moe
