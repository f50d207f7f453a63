#pragma once

#include <chrono>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "core/kernel_trace.h"
#include "train/evaluation.h"
#include "train/interrupt.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/run_folder.h"
#include "train/training_state.h"

namespace switchyard::train {

/// Trains the model of a run's configuration: steps, progress, metrics, validation, checkpoints. It holds nothing that
/// a loop of one's own could not: examples/from_scratch.cpp does without it.
class Trainer {
 public:
  enum class Outcome { finished, interrupted };

  /// `config` is the run's, with the overrides of this start; progress goes to `out`. Continues from the newest good
  /// checkpoint in the run's folder, or begins when there is none.
  Trainer(const RunFolder& run, const Config& config, const TokenizedText& text, std::FILE* out = stdout);

  /// Trains up to config.training.steps, or until Ctrl-C or SIGTERM; either way the last step is saved. A loss that is
  /// not finite throws Error naming the step, the module and the last good checkpoint.
  Outcome run();

  /// Lets core/profiler.h watch `count` training steps, from the third of this start on. On a GPU it watches the
  /// kernels (core/kernel_trace.h): the steps are then not replayed from a graph, where no op could be told from
  /// another, and a table follows the last of them, with a trace of its own in the run's folder.
  void profile_steps(std::int64_t count) { profile_end_ = kUnprofiledSteps + count; }
  /// Whether steps on a GPU may be replayed from a graph; they may unless this is called.
  void use_graph(bool on);
  std::int64_t step() const { return state_.step(); }
  nn::LanguageModel& model() { return state_.model(); }
  TrainingState& state() { return state_; }
  /// The validation text's loss under the present weights.
  Evaluation validate();
  /// What run() found when it last validated; none if it did not.
  const std::optional<Evaluation>& last_validation() const { return last_validation_; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::int64_t kUnprofiledSteps = 2;  // the first ones allocate

  void train_step();
  void finish_trace();
  void log();
  void validate_and_record();
  void save();
  /// Moves the steps' records into recent_; throws when one is not finite.
  void collect();
  [[noreturn]] void stop(std::int64_t step, const std::string& what);
  /// Trains up to `step` again, from the newest checkpoint, and tells what breaks in it; empty when nothing does.
  std::string find_cause(std::int64_t step);

  const RunFolder& run_;
  Config config_;
  const TokenizedText& text_;
  Progress progress_;
  TrainingState state_;
  std::optional<MetricsLog> metrics_;  // opened once the step to continue from is known
  std::vector<StepRecord> recent_;     // since the last progress line
  double training_seconds_ = 0;        // of the steps in recent_ and those not collected
  std::int64_t timed_steps_ = 0;
  std::optional<Evaluation> last_validation_;
  std::int64_t saved_step_ = -1;
  std::int64_t steps_here_ = 0, profile_end_ = 0;  // steps of this start
  bool graph_ = true;
  std::optional<KernelTrace> trace_;  // while steps on a GPU are profiled
};

}  // namespace switchyard::train
