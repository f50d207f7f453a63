#include "moe/statistics.h"

#include <cmath>

#include "core/ops/elementwise.h"
#include "core/ops/index.h"
#include "core/ops/matmul.h"
#include "moe/router.h"

namespace switchyard::moe {
namespace {

template <class Visit>
void for_routers(nn::Module& model, Visit visit) {
  for (const auto& [name, module] : model.named_modules())
    if (auto* router = dynamic_cast<Router*>(module)) visit(name, *router);
}

double slot_total(const std::vector<double>& counts) {
  double total = 0;
  for (const double count : counts) total += count;
  return total;
}

}  // namespace

double RoutingSummary::usage(std::int64_t slot, std::int64_t expert) const {
  const auto& of_slot = counts.at(static_cast<std::size_t>(slot));
  const double total = slot_total(of_slot);
  return total > 0 ? of_slot.at(static_cast<std::size_t>(expert)) / total : 0;
}

double RoutingSummary::entropy() const {
  if (experts < 2) return 1;
  double sum = 0;
  for (const auto& of_slot : counts) {
    const double total = slot_total(of_slot);
    for (const double count : of_slot)
      if (count > 0) sum -= count / total * std::log(count / total);
  }
  return sum / (static_cast<double>(slots) * std::log(static_cast<double>(experts)));
}

std::int64_t RoutingSummary::dead_experts() const {
  std::int64_t dead = 0;
  for (const auto& of_slot : counts)
    for (const double count : of_slot) dead += count == 0;
  return dead;
}

void RoutingStatistics::add(const ops::RoutingPlan& plan) {
  const Device device = plan.expert_offsets.device();
  if (!counts_.defined() || counts_.device() != device) {
    slots_ = plan.slots;
    counts_ = Tensor::zeros({plan.experts}, DType::f64, device);
    tokens_ = Tensor::zeros({1}, DType::f64, device);
  }
  check(counts_.size(0) == plan.experts && slots_ == plan.slots, "RoutingStatistics: the plan has ", plan.slots,
        " slots and ", plan.experts, " experts, earlier ones had ", slots_, " and ", counts_.size(0));
  ops::accumulate(counts_, plan.expert_offsets.slice(0, 1, plan.experts + 1));
  ops::accumulate(counts_, plan.expert_offsets.slice(0, 0, plan.experts), -1);
  ops::accumulate(tokens_, Tensor::full({1}, static_cast<double>(plan.tokens), DType::f64, device));
}

void RoutingStatistics::add_together(const Tensor& indices, std::int64_t experts) {
  // The gradient of a gather with ones is the 0/1 matrix of who was chosen: M [H, N, E], and M^T M counts pairs.
  const Tensor ones = Tensor::ones(indices.shape(), DType::f32, indices.device());
  const Tensor chosen = ops::gather_last_backward(ones, indices, experts).transpose(0, 1).contiguous();
  const Tensor both = ops::matmul(chosen.transpose(1, 2), chosen);
  if (!together_.defined() || together_.device() != both.device())
    together_ = Tensor::zeros(both.shape(), DType::f64, both.device());
  ops::accumulate(together_, both);
}

void RoutingStatistics::reset() {
  for (const Tensor& count : {counts_, tokens_, together_})
    if (count.defined()) count.fill(0);
}

bool RoutingStatistics::empty() const { return !tokens_.defined() || tokens_.item<double>() == 0; }

RoutingSummary RoutingStatistics::summary() const {
  check(!empty(), "RoutingStatistics: no plan was added");
  RoutingSummary summary;
  summary.slots = slots_;
  summary.experts = counts_.numel() / slots_;
  summary.tokens = tokens_.item<double>();
  const auto counts = counts_.to_vector<double>();
  for (auto at = counts.begin(); at != counts.end(); at += summary.experts)
    summary.counts.emplace_back(at, at + summary.experts);
  if (!together_.defined()) return summary;
  const auto together = together_.to_vector<double>();
  if (slot_total(together) == 0) return summary;  // counted before the last reset, not since
  auto at = together.begin();
  for (std::int64_t slot = 0; slot < slots_; ++slot) {
    auto& of_slot = summary.together.emplace_back();
    for (std::int64_t e = 0; e < summary.experts; ++e, at += summary.experts)
      of_slot.emplace_back(at, at + summary.experts);
  }
  return summary;
}

void collect_statistics(nn::Module& model, Collect what) {
  for_routers(model, [what](const std::string&, Router& router) { router.collect(what); });
}

void reset_statistics(nn::Module& model) {
  for_routers(model, [](const std::string&, Router& router) { router.reset_statistics(); });
}

std::vector<RoutingSummary> read_statistics(nn::Module& model) {
  std::vector<RoutingSummary> summaries;
  for_routers(model, [&summaries](const std::string& name, Router& router) {
    if (router.statistics().empty()) return;
    summaries.push_back(router.statistics().summary());
    summaries.back().name = name;
  });
  return summaries;
}

RoutingOverview overview(const std::vector<RoutingSummary>& summaries) {
  RoutingOverview result;
  for (const RoutingSummary& summary : summaries) {
    result.entropy += summary.entropy() / static_cast<double>(summaries.size());
    result.dead_experts += summary.dead_experts();
    result.experts += summary.slots * summary.experts;
  }
  return result;
}

}  // namespace switchyard::moe
