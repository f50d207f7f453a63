#include "moe/conversion/cost.h"

namespace switchyard::moe {
namespace {

double router_products(const NormRouterOptions& router) {
  if (router.depth == 1) return static_cast<double>(router.width * router.experts);
  const std::int64_t inner = (router.depth - 2) * router.hidden;
  return static_cast<double>(router.hidden * (router.width + inner + router.experts));
}

}  // namespace

DynamicCost cost_of(const DynamicFeedForward& layer) {
  const ExpertWeights weights = layer.weights();
  const auto experts = static_cast<double>(weights.experts()), neurons = static_cast<double>(weights.expert_width());
  const auto width = static_cast<double>(weights.width()), output = static_cast<double>(weights.output_width());
  double products = (width + output) * neurons;
  if (weights.gated()) products += width * neurons + neurons;
  if (layer.activation() != ops::Activation::relu) products += neurons;

  DynamicCost cost;
  cost.without_experts = router_products(layer.router().options()) + 4 * experts + 1;
  if (weights.last_bias.defined()) cost.without_experts += output;
  cost.per_expert = products + neurons + output;
  cost.dense = experts * products;
  return cost;
}

double measured_cost(const DynamicFeedForward& layer) {
  return cost_of(layer).per_token(layer.statistics().summary().mean_experts);
}

}  // namespace switchyard::moe
