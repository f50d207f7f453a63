#include <boost/json/array.hpp>

#include "autograd/ops/elementwise.h"
#include "moe/conversion/convert.h"
#include "train/conversion/phase.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;
using moe::GateMode;

/// Predicted norms are compared; the shares that MoEfication's routers predict are not meant for that.
void reshape(Task& task, const ConversionConfig&) { check_routers(task, PhaseKind::adapt, RouterKind::norm); }

/// The model's scores on its validation data, at each tau.
json::array measure(Task& task, const std::vector<double>& taus) {
  json::array scores;
  for (const double tau : taus) {
    moe::set_gates(task.model(), {GateMode::dynk_max, 1, tau});
    json::object score = to_json(task.evaluate());
    score["tau"] = tau;
    scores.push_back(std::move(score));
  }
  return scores;
}

/// Routers go on learning what they did before, from what passes through the model now: norms of experts that change.
std::optional<json::object> run(PhaseContext& context) {
  const AdaptConfig& config = context.config.adapt;
  Task& task = context.task;
  nn::Module& model = task.model();
  reshape(task, context.config);
  json::array before = measure(task, config.taus);
  moe::RouterTutor tutor(moe::converted_layers(model), moe::RouterTarget::output_norm, moe::RouterLoss::mse,
                         context.config.routers.tokens);
  task.run_training_batch();
  tutor.normalize();
  const auto loss = [&](std::int64_t step) {
    const double tau = config.taus[static_cast<std::size_t>(step) % config.taus.size()];
    moe::set_gates(model, {GateMode::dynk_max, 1, tau});
    const Variable task_loss = task.training_loss();
    return task_loss + tutor.loss(0, tutor.rows());
  };
  model.train();
  const bool finished =
      fit_phase(context, PhaseKind::adapt, loss, model.named_parameters(), config.steps, config.optimizer);
  model.eval();
  if (!finished) return std::nullopt;
  tutor.undo_normalization();
  json::object results = {{"before", std::move(before)}, {"after", measure(task, config.taus)}};
  moe::set_gates(model, {});
  return results;
}

std::string summary(const json::object& results) {
  std::string text = "adapt: validation\n";
  const json::array &before = results.at("before").as_array(), &after = results.at("after").as_array();
  for (std::size_t i = 0; i < after.size(); ++i)
    text += format("  tau %-8.4g %s -> %s\n", after[i].at("tau").to_number<double>(),
                   score_text(before[i].as_object()).c_str(), score_text(after[i].as_object()).c_str());
  return text;
}

}  // namespace

const Phase kAdaptPhase = {PhaseKind::adapt, reshape, run, summary};

}  // namespace switchyard::train
