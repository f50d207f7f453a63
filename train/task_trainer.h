#pragma once

#include <cstdio>
#include <optional>

#include "train/fit.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/run_folder.h"
#include "train/task.h"

namespace switchyard::train {

/// Trains a task in a run's folder: progress, metrics, validation, checkpoints, Ctrl-C. (Language models have a Trainer
/// of their own, which also knows of segment memories, gradient accumulation and graphs.)
class TaskTrainer {
 public:
  /// `config` is the run's whole configuration, of which `training` and `optimizer` are sections; progress goes to
  /// `out`. Seeds the default generators, then continues from the newest good checkpoint in the run's folder, or begins
  /// when there is none, or with the weights of one that holds nothing else.
  TaskTrainer(const RunFolder& run, Task& task, const TrainingConfig& training, const OptimizerConfig& optimizer,
              const boost::json::object& config, std::FILE* out = stdout);

  /// Trains up to training.steps, or until Ctrl-C or SIGTERM; either way the last step is saved. Returns whether all
  /// steps were made. A loss that is not finite throws Error naming the step.
  bool run();
  std::int64_t step() const { return steps_.step(); }
  /// What run() found when it last validated; none if it did not.
  const std::optional<Score>& last_validation() const { return last_validation_; }

 private:
  void log();
  void validate();
  void save();

  const RunFolder& run_;
  Task& task_;
  TrainingConfig training_;
  boost::json::object config_;
  Device device_;
  Progress progress_;
  FitSteps steps_;
  std::optional<MetricsLog> metrics_;  // opened once the step to continue from is known
  std::optional<Score> last_validation_;
  std::int64_t logged_step_ = 0, saved_step_ = -1;
};

}  // namespace switchyard::train
