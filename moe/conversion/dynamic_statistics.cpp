#include "moe/conversion/dynamic_statistics.h"

#include "core/ops/elementwise.h"
#include "core/ops/index.h"
#include "core/ops/reduce.h"

namespace switchyard::moe {

void DynamicStatistics::add(const Tensor& mask) {
  check(mask.defined() && mask.dtype() == DType::boolean && mask.rank() == 2,
        "DynamicStatistics: the mask must be bool [N, E]");
  const std::int64_t experts = mask.size(1);
  if (!uses_.defined() || uses_.device() != mask.device()) {
    histogram_ = Tensor::zeros({experts + 1}, DType::f64, mask.device());
    uses_ = Tensor::zeros({experts}, DType::f64, mask.device());
  }
  check(uses_.size(0) == experts, "DynamicStatistics: the mask is of ", experts, " experts, earlier ones were of ",
        uses_.size(0));
  last_counts_ = ops::sum(mask, {-1});
  // The gradient of an embedding for ones counts how often each row was looked up.
  const Tensor ones = Tensor::ones({mask.size(0), 1}, DType::f64, mask.device());
  ops::accumulate(histogram_, ops::embedding_backward(ones, last_counts_, experts + 1).view({experts + 1}));
  ops::accumulate(uses_, ops::sum(mask, {0}));
}

void DynamicStatistics::reset() {
  for (const Tensor& count : {histogram_, uses_})
    if (count.defined()) count.fill(0);
}

DynamicSummary DynamicStatistics::summary() const {
  DynamicSummary summary;
  if (uses_.defined()) {
    summary.histogram = histogram_.to_vector<double>();
    summary.uses = uses_.to_vector<double>();
  }
  double runs = 0;
  for (std::size_t experts = 0; experts < summary.histogram.size(); ++experts) {
    summary.tokens += summary.histogram[experts];
    runs += summary.histogram[experts] * static_cast<double>(experts);
  }
  check(summary.tokens > 0, "DynamicStatistics: no token was added");
  summary.mean_experts = runs / summary.tokens;
  return summary;
}

}  // namespace switchyard::moe
