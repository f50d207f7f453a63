#include "train/task_trainer.h"

#include "core/rng.h"
#include "core/storage.h"
#include "train/checkpoint.h"
#include "train/interrupt.h"
#include "train/training_state.h"

namespace switchyard::train {
namespace {

FitOptions fit_options(const TrainingConfig& training, const OptimizerConfig& optimizer) {
  return {training.steps, optimizer, training.clip, training.log_every};
}

}  // namespace

TaskTrainer::TaskTrainer(const RunFolder& run, Task& task, const TrainingConfig& training,
                         const OptimizerConfig& optimizer, const boost::json::object& config, std::FILE* out)
    : run_(run),
      task_(task),
      training_(training),
      config_(config),
      device_(Device::parse(training.device)),
      progress_(out),
      steps_(task.model().named_parameters(), fit_options(training, optimizer)) {
  seed_all(static_cast<std::uint64_t>(training.seed));
  const auto checkpoint =
      checkpoint_to_continue(run.checkpoints_path(), [this](const std::string& line) { progress_.message(line); });
  if (checkpoint && holds_weights_only(*checkpoint)) {
    load_tensors(checkpoint->model, state_tensors(task.model()));
    steps_.optimizer().refresh_masters();
  } else if (checkpoint) {
    check_continues(*checkpoint, state_section(*checkpoint, "config"), config);
    load_tensors(checkpoint->model, state_tensors(task.model()));
    load_tensors(checkpoint->optimizer, steps_.optimizer().state_tensors());
    task.restore(state_section(*checkpoint, "task"));
    default_generator(device_).set_state(saved_generator(*checkpoint));
    steps_.continue_after(checkpoint->step);
    logged_step_ = saved_step_ = checkpoint->step;
  }
  metrics_.emplace(run.metrics_path(), steps_.step());
  reset_peak_memory(device_);
}

bool TaskTrainer::run() {
  const InterruptGuard interrupt;
  task_.model().train();
  if (saved_step_ < 0) save();  // a run always has a checkpoint: one to continue from when it is killed early
  while (step() < training_.steps && !interrupt.requested()) {
    steps_.advance([this](std::int64_t) { return task_.training_loss(); });
    const bool last = step() == training_.steps;
    if (last || due(step(), training_.log_every)) log();
    if (last || due(step(), training_.validate_every)) validate();
    if (last || due(step(), training_.checkpoint_every)) save();
  }
  if (saved_step_ != step()) save();
  return step() >= training_.steps;
}

void TaskTrainer::log() {
  const FitReport fitted = steps_.report();
  logged_step_ = step();
  ProgressReport report;
  report.step = fitted.step;
  report.steps = fitted.steps;
  report.loss = fitted.loss;
  report.tokens_per_second = static_cast<double>(task_.tokens_per_batch()) / fitted.seconds_per_step;
  report.seconds_left = fitted.seconds_per_step * static_cast<double>(fitted.steps - fitted.step);
  report.peak_bytes = memory_statistics(device_).peak_bytes;
  progress_.update(report);
  metrics_->write(step(), {{"loss", fitted.loss},
                           {"learning_rate", fitted.learning_rate},
                           {"gradient_norm", fitted.gradient_norm},
                           {"tokens_per_second", report.tokens_per_second},
                           {"peak_bytes", report.peak_bytes}});
}

void TaskTrainer::validate() {
  last_validation_ = task_.evaluate();
  char line[128];
  int length = std::snprintf(line, sizeof line, "step %lld  validation: loss %.4f", static_cast<long long>(step()),
                             last_validation_->loss);
  boost::json::object values = {{"validation_loss", last_validation_->loss}};
  if (last_validation_->accuracy) {
    std::snprintf(line + length, sizeof line - static_cast<std::size_t>(length), "  accuracy %.2f%%",
                  100 * *last_validation_->accuracy);
    values["validation_accuracy"] = *last_validation_->accuracy;
  }
  progress_.message(line);
  metrics_->write(step(), values);
}

void TaskTrainer::save() {
  if (logged_step_ != step()) log();  // throws when the loss is not finite
  Checkpoint checkpoint;
  checkpoint.step = step();
  checkpoint.model = state_tensors(task_.model());
  checkpoint.optimizer = steps_.optimizer().state_tensors();
  checkpoint.state = {
      {"config", config_}, {"task", task_.state()}, {"generator", to_json(default_generator(device_).state())}};
  save_checkpoint(run_.checkpoints_path(), checkpoint, training_.keep_checkpoints);
  saved_step_ = step();
}

}  // namespace switchyard::train
