#include <boost/json/array.hpp>

#include "moe/conversion/sparsifier.h"
#include "train/conversion/phase.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

void reshape(Task& task, const ConversionConfig& config) {
  const auto layers = task.model().named_modules_of<nn::FeedForward>();
  check(!layers.empty(), "sparsify: the model has no dense feed-forward");
  if (!config.sparsify.swap_to_relu) return;
  for (const auto& [name, layer] : layers) layer->set_activation(ops::Activation::relu);
}

nn::Schedule weight_schedule(const SparsifyConfig& config) {
  return config.schedule == WeightSchedule::constant ? moe::sparsity_weight::constant(config.weight)
                                                     : moe::sparsity_weight::linear(config.weight, config.steps);
}

/// The model's score on its validation data, and how sparse its layers were meanwhile.
json::object measure(Task& task, moe::Sparsifier& sparsifier) {
  json::object result = to_json(task.evaluate());
  json::array layers;
  for (const auto& [name, sparsity] : sparsifier.take_summaries())
    layers.push_back({{"name", name},
                      {"zero", sparsity.zero},
                      {"below_tenth", sparsity.below_tenth},
                      {"below_hundredth", sparsity.below_hundredth}});
  result["layers"] = std::move(layers);
  return result;
}

std::optional<json::object> run(PhaseContext& context) {
  const SparsifyConfig& config = context.config.sparsify;
  Task& task = context.task;
  moe::Sparsifier sparsifier(task.model(), {config.measure, config.displacement});
  json::object before = measure(task, sparsifier);
  reshape(task, context.config);
  const nn::Schedule weight = weight_schedule(config);
  const auto loss = [&](std::int64_t step) {
    sparsifier.set_weight(weight(step));
    return task.training_loss();
  };
  task.model().train();
  const bool finished =
      fit_phase(context, PhaseKind::sparsify, loss, task.model().named_parameters(), config.steps, config.optimizer);
  task.model().eval();
  if (!finished) return std::nullopt;
  return json::object{{"before", std::move(before)}, {"after", measure(task, sparsifier)}};
}

std::string summary(const json::object& results) {
  const json::object &before = results.at("before").as_object(), &after = results.at("after").as_object();
  std::string text = "sparsify: validation " + score_text(before) + " -> " + score_text(after);
  text += "\n  neurons of                       zero           below 1/10      below 1/100 of the token's largest\n";
  const json::array &old_layers = before.at("layers").as_array(), &new_layers = after.at("layers").as_array();
  for (std::size_t i = 0; i < new_layers.size(); ++i) {
    text += format("  %-28s", new_layers[i].at("name").as_string().c_str());
    for (const char* share : {"zero", "below_tenth", "below_hundredth"})
      text += format(" %5.1f -> %4.1f%%", 100 * old_layers[i].at(share).to_number<double>(),
                     100 * new_layers[i].at(share).to_number<double>());
    text += '\n';
  }
  return text;
}

}  // namespace

const Phase kSparsifyPhase = {PhaseKind::sparsify, reshape, run, summary};

}  // namespace switchyard::train
