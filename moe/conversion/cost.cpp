#include "moe/conversion/cost.h"

#include <algorithm>
#include <array>

#include "nn/feed_forward.h"
#include "nn/transformer.h"

namespace switchyard::moe {
namespace {

double router_products(const NormRouterOptions& router) {
  if (router.depth == 1) return static_cast<double>(router.width * router.experts);
  const std::int64_t inner = (router.depth - 2) * router.hidden;
  return static_cast<double>(router.hidden * (router.width + inner + router.experts));
}

/// Of a two-layer perceptron with `neurons` neurons.
double perceptron_products(double inputs, double neurons, double outputs, bool gated, ops::Activation activation) {
  double products = (inputs + outputs) * neurons;
  if (gated) products += inputs * neurons + neurons;
  if (activation != ops::Activation::relu) products += neurons;
  return products;
}

/// What stands in a place where `is_projection` says what was there before conversion; of cost 0 if it is neither
/// dense nor converted.
ConvertibleLayer describe(const std::string& name, nn::Module& layer, bool is_projection) {
  const auto size = [](const Variable& weight, std::int64_t axis) { return static_cast<double>(weight.size(axis)); };
  ConvertibleLayer result{name};
  double inputs = 0, outputs = 0;
  if (auto* converted = dynamic_cast<DynamicFeedForward*>(&layer)) {
    const ExpertWeights weights = converted->weights();
    inputs = static_cast<double>(weights.width());
    outputs = static_cast<double>(weights.output_width());
    result.converted = converted;
    result.dense = cost_of(*converted).dense;
  } else if (const auto* dense = dynamic_cast<const nn::FeedForward*>(&layer)) {
    inputs = size(dense->up().weight(), 1);
    outputs = size(dense->down().weight(), 0);
    result.dense = result.unconverted = perceptron_products(inputs, size(dense->up().weight(), 0), outputs,
                                                            dense->gate() != nullptr, dense->activation());
  } else if (const auto* linear = dynamic_cast<const nn::Linear*>(&layer)) {
    inputs = size(linear->weight(), 1);
    outputs = size(linear->weight(), 0);
    result.unconverted = inputs * outputs;
  }
  if (is_projection) result.dense = inputs * outputs;
  return result;
}

}  // namespace

DynamicCost cost_of(const DynamicFeedForward& layer) {
  const ExpertWeights weights = layer.weights();
  const auto experts = static_cast<double>(weights.experts()), neurons = static_cast<double>(weights.expert_width());
  const auto width = static_cast<double>(weights.width()), output = static_cast<double>(weights.output_width());
  const double products = perceptron_products(width, neurons, output, weights.gated(), layer.activation());

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

std::vector<ConvertibleLayer> convertible_layers(nn::Module& model) {
  constexpr std::array kProjections = {"query", "key", "value", "output"};
  std::vector<ConvertibleLayer> layers;
  const auto add = [&layers](const std::string& name, nn::Module& layer, bool is_projection) {
    const ConvertibleLayer described = describe(name, layer, is_projection);
    if (described.dense > 0) layers.push_back(described);
  };
  for (const auto& [block_name, module] : model.named_modules()) {
    auto* block = dynamic_cast<nn::TransformerBlock*>(module);
    if (!block) continue;
    const std::string attention = block_name + ".attention.";
    for (const auto& [name, sublayer] : block->attention().named_modules())
      if (std::find(kProjections.begin(), kProjections.end(), name) != kProjections.end())
        add(attention + name, *sublayer, true);
    add(block_name + ".feed_forward", block->feed_forward(), false);
  }
  return layers;
}

}  // namespace switchyard::moe
