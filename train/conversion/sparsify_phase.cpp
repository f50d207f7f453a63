#include <boost/json/array.hpp>

#include "moe/conversion/projection.h"
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

nn::Schedule weight_schedule(const SparsifyConfig& config, double weight) {
  return config.schedule == WeightSchedule::constant ? moe::sparsity_weight::constant(weight)
                                                     : moe::sparsity_weight::linear(weight, config.steps);
}

std::vector<std::pair<std::string, nn::FeedForward*>> feed_forwards_of(nn::Module& model) {
  std::vector<std::pair<std::string, nn::FeedForward*>> layers;
  for (const auto& [name, block] : model.named_modules_of<nn::TransformerBlock>())
    if (auto* layer = dynamic_cast<nn::FeedForward*>(&block->feed_forward()))
      layers.emplace_back(name + ".feed_forward", layer);
  return layers;
}

/// The penalties on the blocks' feed-forwards and on the stand-ins for projections, which have weights of their own.
struct Penalties {
  Penalties(nn::Module& model, const SparsifyConfig& config)
      : feed_forwards(feed_forwards_of(model), {config.measure, config.displacement}),
        projections(moe::dense_stand_ins(model), {config.measure, config.displacement}),
        weight(weight_schedule(config, config.weight)),
        projections_weight(weight_schedule(config, config.projections_weight)) {}

  void start_step(std::int64_t step) {
    feed_forwards.set_weight(weight(step));
    projections.set_weight(projections_weight(step));
  }

  moe::Sparsifier feed_forwards, projections;
  nn::Schedule weight, projections_weight;
};

/// The model's score on its validation data, and how sparse its layers were meanwhile.
json::object measure(Task& task, Penalties& penalties) {
  json::object result = to_json(task.evaluate());
  json::array layers;
  for (moe::Sparsifier* sparsifier : {&penalties.feed_forwards, &penalties.projections})
    for (const auto& [name, sparsity] : sparsifier->take_summaries())
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
  Penalties penalties(task.model(), config);
  json::object before = measure(task, penalties);
  reshape(task, context.config);
  const auto loss = [&](std::int64_t step) {
    penalties.start_step(step);
    return task.training_loss();
  };
  task.model().train();
  const bool finished =
      fit_phase(context, PhaseKind::sparsify, loss, task.model().named_parameters(), config.steps, config.optimizer);
  task.model().eval();
  if (!finished) return std::nullopt;
  return json::object{{"before", std::move(before)}, {"after", measure(task, penalties)}};
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
