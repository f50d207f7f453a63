#pragma once

#include <string>
#include <vector>

#include "core/ops/routing.h"
#include "nn/module.h"

namespace switchyard::moe {

/// How the experts of one router were used (H slots of E experts each; 1 slot for a feed-forward).
struct RoutingSummary {
  std::string name;  ///< path of the router in the model
  std::int64_t slots = 1, experts = 0;
  double tokens = 0;  ///< routed since the last reset
  /// [H][E]: how many tokens each expert got.
  std::vector<std::vector<double>> counts;
  /// [H][E][E]: how many tokens experts e and f both got; empty unless co-occurrence was collected.
  std::vector<std::vector<std::vector<double>>> together;

  /// Share of the pairs of its slot that expert e of a slot got; 0 before any token.
  double usage(std::int64_t slot, std::int64_t expert) const;
  /// Entropy of the usage over log E, mean over the slots: 1 for even use, 0 when one expert gets all.
  double entropy() const;
  /// Experts, of all H E, that got no token.
  std::int64_t dead_experts() const;
};

/// Counts of one router, kept on its device: adding a plan never waits for the device; only summary() and empty() read
/// back. Once made, the counts stay where they are, so that a recorded graph goes on adding to them.
class RoutingStatistics {
 public:
  /// Adds the counts of a plan.
  void add(const ops::RoutingPlan& plan);
  /// Adds which experts were chosen together; indices i32 [N, H, k] as in the plan, E experts per slot.
  void add_together(const Tensor& indices, std::int64_t experts);
  void reset();
  /// True when nothing was added since the last reset.
  bool empty() const;
  /// Reads everything back. Throws Error before the first add.
  RoutingSummary summary() const;

 private:
  std::int64_t slots_ = 1;
  Tensor counts_;    // f64 [H E]
  Tensor tokens_;    // f64 [1]
  Tensor together_;  // f64 [H, E, E]
};

/// What the routers of a model keep count of.
enum class Collect : std::uint8_t {
  nothing,
  usage,    ///< tokens per expert: next to no cost
  together  ///< usage, and which experts are chosen together: N E^2 multiply-adds per slot
};

/// Sets what every router below `model` counts from now on, and forgets what was counted. In training only passes that
/// record gradients count, so that recomputed blocks are not counted twice.
void collect_statistics(nn::Module& model, Collect what);
/// Forgets what was counted, to begin another interval.
void reset_statistics(nn::Module& model);
/// One summary per router that counted anything, in the model's order. Waits for the device.
std::vector<RoutingSummary> read_statistics(nn::Module& model);

/// A model's summaries in two numbers, as the trainer's progress line shows them.
struct RoutingOverview {
  double entropy = 0;             ///< mean over the routers
  std::int64_t dead_experts = 0;  ///< of all routers together
  std::int64_t experts = 0;       ///< of all routers together
};
RoutingOverview overview(const std::vector<RoutingSummary>& summaries);

}  // namespace switchyard::moe
