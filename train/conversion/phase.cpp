#include "train/conversion/phase.h"

#include <array>
#include <cstdarg>
#include <cstdio>

#include "moe/conversion/convert.h"
#include "train/progress.h"

namespace switchyard::train {
namespace {

NamedTensors tensors_of(const std::vector<nn::NamedParameter>& parameters) {
  NamedTensors tensors;
  for (const nn::NamedParameter& p : parameters) tensors.emplace_back(p.name, p.variable.data());
  return tensors;
}

/// Saves a phase on its way, so that continue_from() brings it back to here.
void save(const PhaseContext& context, const NamedTensors& parameters, FitSteps& steps) {
  const Device device = parameters.at(0).second.device();
  save_checkpoint(context.folder,
                  {context.steps_before + steps.step(),
                   parameters,
                   steps.optimizer().state_tensors(),
                   {{"data", context.task.state()}, {"generator", to_json(default_generator(device).state())}}},
                  1);
  context.task.restore(context.task.state());  // a segment memory, which is not saved, starts empty here in either case
}

void continue_from(const OpenCheckpoint& checkpoint, const PhaseContext& context, const NamedTensors& parameters,
                   FitSteps& steps) {
  load_tensors(checkpoint.model, parameters);
  load_tensors(checkpoint.optimizer, steps.optimizer().state_tensors());
  context.task.restore(state_section(checkpoint, "data"));
  default_generator(parameters.at(0).second.device()).set_state(saved_generator(checkpoint));
  steps.continue_after(checkpoint.step - context.steps_before);
}

}  // namespace

std::string_view name_of(PhaseKind kind) { return names_of(kind)[static_cast<std::size_t>(kind)]; }

const Phase& phase_of(PhaseKind kind) {
  for (const Phase* phase : {&kProjectionsPhase, &kSparsifyPhase, &kExpertsPhase, &kRoutersPhase, &kAdaptPhase})
    if (phase->kind == kind) return *phase;
  fail("phase_of: unknown phase ", static_cast<int>(kind));
}

std::vector<nn::TransformerBlock*> blocks_of(Task& task) {
  std::vector<nn::TransformerBlock*> blocks;
  for (std::int64_t i = 0; i < task.layers(); ++i) blocks.push_back(&task.block(i));
  return blocks;
}

ops::Activation score_activation(RouterKind kind) {
  return kind == RouterKind::moefication ? ops::Activation::identity : ops::Activation::abs;
}

void check_routers(Task& task, PhaseKind phase, RouterKind kind) {
  const auto layers = moe::converted_layers(task.model());
  check(!layers.empty(), name_of(phase), ": the model has no experts, expected phase experts before");
  const ops::Activation found = layers[0]->router().options().output_activation, expected = score_activation(kind);
  check(found == expected, name_of(phase), ": the model's routers give scores by ", ops::name_of(found), ", expected ",
        ops::name_of(expected), " as routers of kind ", names_of(kind)[static_cast<std::size_t>(kind)], " do");
}

bool fit_phase(PhaseContext& context, PhaseKind kind, const FitLoss& loss,
               const std::vector<nn::NamedParameter>& parameters, std::int64_t steps, const OptimizerConfig& optimizer,
               std::int64_t tokens_per_step) {
  FitOptions options;
  options.steps = steps;
  options.optimizer = optimizer;
  options.clip = context.config.training.clip;
  options.log_every = context.config.training.log_every;
  options.checkpoint_every = context.config.training.checkpoint_every;
  FitSteps fit_steps(parameters, options);
  const NamedTensors tensors = tensors_of(parameters);
  if (context.unfinished) {
    continue_from(*context.unfinished, context, tensors, fit_steps);
    context.say(format("%s  goes on after step %lld", std::string(name_of(kind)).c_str(),
                       static_cast<long long>(fit_steps.step())));
  }
  const std::int64_t tokens = tokens_per_step > 0 ? tokens_per_step : context.task.tokens_per_batch();
  const auto report = [&](const FitReport& now) {
    const double rate = static_cast<double>(tokens) / now.seconds_per_step;
    const double seconds_left = now.seconds_per_step * static_cast<double>(now.steps - now.step);
    context.say(format("%s  step %5lld/%lld  loss %.5g  %s tok/s  ETA %s", std::string(name_of(kind)).c_str(),
                       static_cast<long long>(now.step), static_cast<long long>(now.steps), now.loss,
                       format_rate(rate).c_str(), format_duration(seconds_left).c_str()));
    context.record(now.step, {{"loss", now.loss},
                              {"gradient_norm", now.gradient_norm},
                              {"learning_rate", now.learning_rate},
                              {"tokens_per_second", rate}});
  };
  return fit(fit_steps, loss, report, context.stop, [&] { save(context, tensors, fit_steps); });
}

boost::json::object to_json(const Score& score) {
  boost::json::object values = {{"loss", score.loss}};
  if (score.accuracy) values["accuracy"] = *score.accuracy;
  return values;
}

std::string score_text(const boost::json::object& score) {
  std::string text = format("loss %.4f", score.at("loss").to_number<double>());
  if (const auto* accuracy = score.if_contains("accuracy"))
    text += format(" accuracy %.1f%%", 100 * accuracy->to_number<double>());
  return text;
}

std::string format(const char* pattern, ...) {
  std::array<char, 201> text{};
  std::va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text.data(), text.size(), pattern, arguments);
  va_end(arguments);
  return text.data();
}

}  // namespace switchyard::train
