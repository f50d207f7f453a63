#include "train/trainer.h"

#include <cmath>
#include <exception>
#include <sstream>

#include "autograd/grad_mode.h"
#include "core/profiler.h"
#include "moe/statistics.h"
#include "train/fit.h"

namespace switchyard::train {

Trainer::Trainer(const RunFolder& run, const Config& config, const TokenizedText& text, std::FILE* out)
    : run_(run), config_(config), text_(text), progress_(out), state_(config, text) {
  const auto checkpoint =
      checkpoint_to_continue(run.checkpoints_path(), [this](const std::string& line) { progress_.message(line); });
  if (checkpoint) {
    state_.restore(*checkpoint);
    if (!holds_weights_only(*checkpoint)) saved_step_ = checkpoint->step;
  }
  metrics_.emplace(run.metrics_path(), state_.step());
  reset_peak_memory(state_.device());
}

Trainer::Outcome Trainer::run() {
  const InterruptGuard interrupt;
  state_.model().train();
  moe::collect_statistics(state_.model(), moe::Collect::usage);
  // A run always has a checkpoint: one to go back to when the first steps fail, and one to continue from when it is
  // killed in them.
  if (saved_step_ < 0) save();
  const TrainingConfig& training = config_.training;
  while (state_.step() < training.steps && !interrupt.requested()) {
    train_step();
    const std::int64_t step = state_.step();
    const bool last = step == training.steps;
    if (state_.records_full()) collect();
    if (last || due(step, training.log_every)) log();
    if (last || due(step, training.validate_every)) validate_and_record();
    if (last || due(step, training.checkpoint_every)) save();
  }
  if (trace_) finish_trace();
  if (saved_step_ != state_.step()) save();
  return state_.step() >= training.steps ? Outcome::finished : Outcome::interrupted;
}

void Trainer::train_step() {
  const auto start = Clock::now();
  const bool profiled = steps_here_ >= kUnprofiledSteps && steps_here_ < profile_end_;
  if (profiled && !trace_ && state_.device().is_cuda()) {
    state_.use_graph(false);
    trace_.emplace(state_.device());
  }
  if (profiled) enable_profiler(true);
  {
    std::optional<ProfileScope> scope;
    if (!trace_) scope.emplace("outside of kernels");
    state_.advance();
  }
  if (profiled) enable_profiler(false);
  ++steps_here_;
  training_seconds_ += seconds_since(start);
  ++timed_steps_;
  if (trace_ && (steps_here_ == profile_end_ || state_.step() == config_.training.steps)) finish_trace();
}

void Trainer::finish_trace() {
  trace_->stop();
  const std::int64_t steps = steps_here_ - kUnprofiledSteps;
  std::ostringstream table;
  trace_->print(table, steps);
  trace_->write_chrome_trace(run_.trace_path());
  trace_.reset();
  progress_.message("the GPU during " + std::to_string(steps) + " steps, not replayed from a graph:\n" + table.str() +
                    "trace for ui.perfetto.dev: " + run_.trace_path().string());
  state_.use_graph(graph_);
}

void Trainer::use_graph(bool on) {
  graph_ = on;
  state_.use_graph(on);
}

void Trainer::collect() {
  const auto start = Clock::now();  // waiting for a device is training time
  for (const StepRecord& record : state_.take_records()) {
    if (!record.finite())
      stop(record.step, std::isnan(record.loss)   ? "the loss is nan"
                        : std::isinf(record.loss) ? "the loss is infinite"
                                                  : "the gradient is not finite");
    recent_.push_back(record);
  }
  training_seconds_ += seconds_since(start);
}

void Trainer::log() {
  collect();
  if (recent_.empty()) return;
  double loss = 0;
  for (const StepRecord& record : recent_) loss += record.loss / static_cast<double>(recent_.size());
  const double seconds_per_step = training_seconds_ / static_cast<double>(timed_steps_);

  ProgressReport report;
  report.step = state_.step();
  report.steps = config_.training.steps;
  report.loss = loss;
  report.bits_per_byte = bits_per_byte(loss, text_.tokens_per_byte);
  report.tokens_per_second = static_cast<double>(state_.tokens_per_step()) / seconds_per_step;
  report.seconds_left = seconds_per_step * static_cast<double>(report.steps - report.step);
  report.peak_bytes = memory_statistics(state_.device()).peak_bytes;
  boost::json::object line = {{"loss", loss},
                              {"bits_per_byte", *report.bits_per_byte},
                              {"learning_rate", state_.learning_rate()},
                              {"gradient_norm", recent_.back().gradient_norm},
                              {"tokens_per_second", report.tokens_per_second},
                              {"peak_bytes", report.peak_bytes}};
  if (const auto summaries = moe::read_statistics(state_.model()); !summaries.empty()) {
    const moe::RoutingOverview routing = moe::overview(summaries);
    report.expert_entropy = routing.entropy;
    line["expert_entropy"] = routing.entropy;
    line["dead_experts"] = routing.dead_experts;
  }
  progress_.update(report);
  metrics_->write(report.step, line);
  moe::reset_statistics(state_.model());
  recent_.clear();
  training_seconds_ = 0;
  timed_steps_ = 0;
}

Evaluation Trainer::validate() {
  EvaluationOptions options;
  options.windows = config_.data.validation_windows;
  options.batch = config_.training.batch / config_.training.gradient_accumulation;
  options.context = config_.model.context;
  options.memory = config_.model.memory;
  moe::collect_statistics(state_.model(), moe::Collect::nothing);
  const Evaluation result = evaluate(state_.model(), text_.validation, options);
  moe::collect_statistics(state_.model(), moe::Collect::usage);
  return result;
}

void Trainer::validate_and_record() {
  last_validation_ = validate();
  const double loss = last_validation_->nats_per_token;
  const double bits = bits_per_byte(loss, text_.tokens_per_byte);
  char line[128];
  std::snprintf(line, sizeof line, "step %lld  validation: loss %.4f  %.3f bits/byte",
                static_cast<long long>(state_.step()), loss, bits);
  progress_.message(line);
  metrics_->write(state_.step(), {{"validation_loss", loss}, {"validation_bits_per_byte", bits}});
}

void Trainer::save() {
  collect();
  if (const std::string name = state_.nonfinite_parameter(); !name.empty())
    stop(state_.step(), "parameter " + name + " is not finite");
  save_checkpoint(run_.checkpoints_path(), state_.snapshot(), config_.training.keep_checkpoints);
  saved_step_ = state_.step();
}

void Trainer::stop(std::int64_t step, const std::string& what) {
  std::string message = "training: step " + std::to_string(step) + ": " + what;
  if (saved_step_ < 0) fail(message, "; no checkpoint was written yet");
  const std::string path = (run_.checkpoints_path() / checkpoint_name(saved_step_)).string();
  std::string cause;
  try {
    cause = find_cause(step);
  } catch (const std::exception& error) {
    cause = std::string("looking for the cause failed: ") + error.what();
  }
  fail(message, "; ", cause, "; last good checkpoint: ", path);
}

std::string Trainer::find_cause(std::int64_t step) {
  const std::string broken = state_.nonfinite_parameter();
  state_.use_graph(false);  // a graph cannot be looked into
  progress_.message("step " + std::to_string(step) + " went wrong; repeating the steps from " +
                    std::to_string(saved_step_ + 1) + " on to find out where");
  state_.restore(open_checkpoint(run_.checkpoints_path() / checkpoint_name(saved_step_)));
  while (state_.step() + 1 < step) {
    state_.advance();
    state_.take_records();
  }
  if (const std::string name = state_.nonfinite_parameter(); !name.empty())
    return "parameter " + name + " was not finite before it";
  try {
    const AnomalyGuard anomaly;
    state_.advance();
  } catch (const Error& error) {
    return error.what();
  }
  if (const std::string name = state_.nonfinite_parameter(); !name.empty())
    return "its update left parameter " + name + " not finite";
  return "repeated from the checkpoint it is finite" + (broken.empty() ? "" : ", yet parameter " + broken + " was not");
}

}  // namespace switchyard::train
