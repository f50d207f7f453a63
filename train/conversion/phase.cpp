#include "train/conversion/phase.h"

#include <array>
#include <cstdarg>
#include <cstdio>

#include "train/progress.h"

namespace switchyard::train {

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

bool fit_phase(PhaseContext& context, PhaseKind kind, const FitLoss& loss,
               const std::vector<nn::NamedParameter>& parameters, std::int64_t steps, const OptimizerConfig& optimizer,
               std::int64_t tokens_per_step) {
  FitOptions options;
  options.steps = steps;
  options.optimizer = optimizer;
  options.clip = context.config.training.clip;
  options.log_every = context.config.training.log_every;
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
  return fit(loss, parameters, options, report, context.stop);
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
