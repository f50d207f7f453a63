#include "train/conversion/compute_map.h"

#include "moe/conversion/convert.h"
#include "moe/conversion/cost.h"

namespace switchyard::train {
namespace {

/// Mean over the layers of tau, or of k as a share of the experts.
double gate_value(const std::vector<moe::DynamicFeedForward*>& layers) {
  double sum = 0;
  for (const moe::DynamicFeedForward* layer : layers) {
    const moe::Gate& gate = layer->gate();
    const auto experts = static_cast<double>(layer->weights().experts());
    if (gate.mode == moe::GateMode::all) sum += 1;
    else if (gate.mode == moe::GateMode::topk) sum += static_cast<double>(gate.k) / experts;
    else sum += gate.tau;
  }
  return sum / static_cast<double>(layers.size());
}

/// Multiply-adds of each of the tokens that went through the model last.
std::vector<double> macs_of_tokens(const std::vector<moe::ConvertibleLayer>& layers, std::size_t tokens) {
  std::vector<double> macs(tokens, 0);
  for (const moe::ConvertibleLayer& layer : layers) {
    if (!layer.converted) {
      for (double& total : macs) total += layer.unconverted;
      continue;
    }
    const moe::DynamicCost cost = moe::cost_of(*layer.converted);
    const auto counts = layer.converted->statistics().last_counts().to_vector<double>();
    check(counts.size() == tokens, "compute_map: ", layer.name, " saw ", counts.size(), " tokens, expected ", tokens);
    for (std::size_t i = 0; i < tokens; ++i) macs[i] += cost.per_token(counts[i]);
  }
  return macs;
}

}  // namespace

boost::json::object compute_map(Task& task) {
  const std::vector<moe::DynamicFeedForward*> converted = moe::converted_layers(task.model());
  check(!converted.empty(), "compute_map: the model has no converted layers");
  const std::vector<moe::ConvertibleLayer> layers = moe::convertible_layers(task.model());
  const Exhibit exhibit = task.exhibit();
  const bool was_training = task.model().training();
  task.model().eval();
  for (moe::DynamicFeedForward* layer : converted) layer->collect(true);
  exhibit.pass.run();
  for (moe::DynamicFeedForward* layer : converted) layer->collect(false);
  task.model().train(was_training);

  double dense = 0;
  for (const moe::ConvertibleLayer& layer : layers) dense += layer.dense;
  const moe::GateMode mode = converted.front()->gate().mode;
  boost::json::object map = exhibit.describe(macs_of_tokens(layers, static_cast<std::size_t>(exhibit.pass.tokens)));
  map["method"] = ops::name_of(mode);
  map["setting"] = mode == moe::GateMode::topk ? "k / experts" : "tau";
  map["value"] = gate_value(converted);
  map["dense_macs"] = dense;
  return map;
}

}  // namespace switchyard::train
