#include "moe/conversion/sparsifier.h"

#include "autograd/ops/elementwise.h"

namespace switchyard::moe {

Sparsifier::Sparsifier(const std::vector<std::pair<std::string, nn::FeedForward*>>& layers,
                       const SparsityPenaltyOptions& options)
    : options_(options) {
  for (const auto& [name, module] : layers) layers_.push_back(std::make_unique<Layer>(Layer{name, module, {}}));
  for (const auto& layer : layers_)
    layer->module->set_observer(
        [this, &layer = *layer](const nn::Neurons& neurons) { return observe(layer, neurons); });
}

Sparsifier::~Sparsifier() {
  for (const auto& layer : layers_) layer->module->set_observer({});
}

Variable Sparsifier::observe(Layer& layer, const nn::Neurons& neurons) const {
  if (!layer.module->training()) {
    layer.sparsity.add(neurons.activations.data());
    return {};
  }
  if (weight_ == 0) return {};
  const Variable penalised =
      neurons.sums.defined() ? displaced(neurons.sums, options_.displacement) : neurons.activations;
  return sparsity_penalty(options_.measure, penalised) * (weight_ / static_cast<double>(layers_.size()));
}

std::vector<LayerSparsity> Sparsifier::take_summaries() {
  std::vector<LayerSparsity> summaries;
  for (const auto& layer : layers_) {
    summaries.push_back({layer->name, layer->sparsity.summary()});
    layer->sparsity.reset();
  }
  return summaries;
}

}  // namespace switchyard::moe
