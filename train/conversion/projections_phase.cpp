#include <boost/json/array.hpp>

#include "moe/conversion/distillation.h"
#include "train/conversion/phase.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

moe::StandInOptions options_of(const ProjectionsConfig& config) {
  moe::StandInOptions options;
  options.kinds = config.kinds;
  options.flops_factor = config.flops_factor;
  options.multiple = config.expert_width;
  options.activation = config.activation;
  options.residual = config.residual;
  return options;
}

void reshape(Task& task, const ConversionConfig& config) {
  Generator generator(static_cast<std::uint64_t>(config.training.seed));
  moe::replace_projections(task.model(), options_of(config.projections), generator);
}

/// How far the stand-ins are from their projections, on a batch that they were not trained on.
json::array judge(Task& task, moe::ProjectionDistillation& distillation) {
  distillation.take_errors();
  task.run_training_batch();
  json::array projections;
  for (const auto& [name, error] : distillation.take_errors())
    projections.push_back({{"name", name}, {"error", error}});
  return projections;
}

std::optional<json::object> run(PhaseContext& context) {
  const ProjectionsConfig& config = context.config.projections;
  Task& task = context.task;
  json::object results = {{"before", to_json(task.evaluate())}};
  Generator generator(static_cast<std::uint64_t>(context.config.training.seed));
  moe::ProjectionDistillation distillation(task.model(), options_of(config), generator);
  const auto loss = [&](std::int64_t) {
    task.run_training_batch();
    return distillation.take_loss();
  };
  if (!fit_phase(context, PhaseKind::projections, loss, distillation.parameters(), config.steps, config.optimizer))
    return std::nullopt;
  results["projections"] = judge(task, distillation);
  distillation.install();
  results["after"] = to_json(task.evaluate());
  return results;
}

std::string summary(const json::object& results) {
  std::string text = "projections: validation " + score_text(results.at("before").as_object()) + " -> " +
                     score_text(results.at("after").as_object()) + " with the stand-ins\n";
  for (const json::value& projection : results.at("projections").as_array())
    text += format("  %-28s %6.2f%% of the output missed\n", projection.at("name").as_string().c_str(),
                   100 * projection.at("error").to_number<double>());
  return text;
}

}  // namespace

const Phase kProjectionsPhase = {PhaseKind::projections, reshape, run, summary};

}  // namespace switchyard::train
