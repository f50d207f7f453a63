#include <chrono>

#include "moe/conversion/convert.h"
#include "train/conversion/phase.h"
#include "train/progress.h"

namespace switchyard::train {
namespace {

moe::ConversionOptions options_of(const ConversionConfig& config) {
  moe::ConversionOptions options;
  options.expert_width = config.experts.expert_width;
  options.clustering.restarts = config.experts.restarts;
  options.router.hidden = config.routers.hidden;
  options.router.output_activation = score_activation(config.routers.kind);
  return options;
}

/// For the stand-ins of projections.
moe::ConversionOptions projection_options_of(const ConversionConfig& config) {
  moe::ConversionOptions options = options_of(config);
  options.expert_width = config.projections.expert_width;
  options.router.hidden = config.projections.router_hidden;
  return options;
}

/// Experts of neighbouring neurons: the sizes, without the work.
void reshape(Task& task, const ConversionConfig& config) {
  moe::ConversionOptions options = options_of(config), projection_options = projection_options_of(config);
  options.cluster = projection_options.cluster = false;
  Generator generator(static_cast<std::uint64_t>(config.training.seed));
  moe::convert_feed_forwards(blocks_of(task), options, generator);
  moe::convert_projections(task.model(), projection_options, generator);
}

/// By what they do with a batch of training data.
void order_experts(Task& task) {
  const auto layers = moe::converted_layers(task.model());
  std::vector<Tensor> rows(layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i)
    layers[i]->set_observer([&rows, i](const Tensor& seen) { rows[i] = seen; });
  task.run_training_batch();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i]->set_observer({});
    moe::order_by_norm(*layers[i], rows[i]);
  }
}

std::optional<boost::json::object> run(PhaseContext& context) {
  Generator generator(static_cast<std::uint64_t>(context.config.training.seed));
  const moe::ConversionOptions options = options_of(context.config);
  const auto blocks = blocks_of(context.task);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (context.stop()) return std::nullopt;
    const auto start = std::chrono::steady_clock::now();
    const auto layer = moe::convert_feed_forwards({blocks[i]}, options, generator);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const moe::ExpertWeights weights = layer[0]->weights();
    context.say(format("experts  layer %zu/%zu  %lld experts of %lld neurons  %s", i + 1, blocks.size(),
                       static_cast<long long>(weights.experts()), static_cast<long long>(weights.expert_width()),
                       format_duration(seconds.count()).c_str()));
  }
  const auto projections =
      moe::convert_projections(context.task.model(), projection_options_of(context.config), generator);
  if (!projections.empty()) context.say(format("experts  %zu projections", projections.size()));
  order_experts(context.task);
  return to_json(context.task.evaluate());
}

std::string summary(const boost::json::object& results) {
  return "experts: validation " + score_text(results) + " with all of them running\n";
}

}  // namespace

const Phase kExpertsPhase = {PhaseKind::experts, reshape, run, summary};

}  // namespace switchyard::train
