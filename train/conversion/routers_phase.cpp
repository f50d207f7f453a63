#include <boost/json/array.hpp>

#include "moe/conversion/convert.h"
#include "train/conversion/phase.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

constexpr std::int64_t kJudgedRows = 2048;  // ranks are computed on the CPU
constexpr double kRecallShare = 0.25;       // of the experts, the best ones

void reshape(Task& task, const ConversionConfig& config) {
  check_routers(task, PhaseKind::routers, config.routers.kind);
}

moe::RouterLoss loss_of(const RoutersConfig& config) {
  if (config.kind == RouterKind::moefication) return moe::RouterLoss::binary_cross_entropy;
  return config.loss == RegressionLoss::huber ? moe::RouterLoss::huber : moe::RouterLoss::mse;
}

/// How the routers order the experts of a batch that they were not trained on.
json::object judge(Task& task, const moe::RouterTutor& tutor) {
  task.run_training_batch();
  const std::vector<moe::RouterQuality> qualities = tutor.quality(kJudgedRows, kRecallShare);
  json::array layers;
  for (const auto& [name, layer] : task.model().named_modules_of<moe::DynamicFeedForward>()) {
    const moe::RouterQuality& quality = qualities[layers.size()];
    layers.push_back(
        {{"name", name}, {"rank_correlation", quality.rank_correlation}, {"top_recall", quality.top_recall}});
  }
  return {{"recall_share", kRecallShare}, {"layers", std::move(layers)}};
}

std::optional<json::object> run(PhaseContext& context) {
  const RoutersConfig& config = context.config.routers;
  Task& task = context.task;
  reshape(task, context.config);
  const auto layers = moe::converted_layers(task.model());
  const moe::RouterTarget target =
      config.kind == RouterKind::moefication ? moe::RouterTarget::activation_share : moe::RouterTarget::output_norm;
  moe::RouterTutor tutor(layers, target, loss_of(config));
  if (config.kind == RouterKind::norm) {
    task.run_training_batch();
    tutor.normalize();
  }
  std::int64_t next = 0, rows = 0;  // of the batch that went through the model last
  const auto loss = [&](std::int64_t step) {
    if (next == rows || context.begins_anew(step)) {
      task.run_training_batch();
      next = 0;
      rows = tutor.rows();
    }
    const std::int64_t first = std::exchange(next, std::min(next + config.tokens, rows));
    return tutor.loss(first, next);
  };
  if (!fit_phase(context, PhaseKind::routers, loss, tutor.parameters(), config.steps, config.optimizer,
                 std::min(config.tokens, task.tokens_per_batch())))
    return std::nullopt;
  tutor.undo_normalization();
  return judge(task, tutor);
}

std::string summary(const json::object& results) {
  std::string text = "routers: rank correlation, and recall of the best quarter of the experts\n";
  for (const json::value& layer : results.at("layers").as_array())
    text += format("  %-28s %.3f  %.3f\n", layer.at("name").as_string().c_str(),
                   layer.at("rank_correlation").to_number<double>(), layer.at("top_recall").to_number<double>());
  return text;
}

}  // namespace

const Phase kRoutersPhase = {PhaseKind::routers, reshape, run, summary};

}  // namespace switchyard::train
