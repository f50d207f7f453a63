#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "train/checkpoint.h"
#include "train/conversion/config.h"
#include "train/fit.h"
#include "train/task.h"

namespace switchyard::train {

/// What a phase of a conversion works with.
struct PhaseContext {
  Task& task;  ///< whose model is as the phase before left it
  const ConversionConfig& config;
  std::filesystem::path folder;              ///< for the checkpoints of this phase
  std::int64_t steps_before = 0;             ///< those of the phases before
  std::optional<OpenCheckpoint> unfinished;  ///< where this phase goes on, if it was stopped
  std::function<void(const std::string& line)> say;
  /// Adds a line of metrics for a step of this phase.
  std::function<void(std::int64_t step, const boost::json::object& values)> record;
  std::function<bool()> stop;  ///< asked between steps

  /// Whether step `step` begins anew, as if the phase had been stopped and went on here. What a loss keeps of the steps
  /// before it is to be forgotten then.
  bool begins_anew(std::int64_t step) const { return step == 0 || due(step, config.training.checkpoint_every); }
};

/// One phase of a conversion, as functions of the model that it turns into another.
struct Phase {
  PhaseKind kind;
  /// Gives the model the layers that it has after the phase, with weights that do not matter: a saved model is read
  /// into them. Throws Error where the model has no place for them.
  void (*reshape)(Task& task, const ConversionConfig& config);
  /// The phase itself. Returns its results for people and plots, or none when it was told to stop.
  std::optional<boost::json::object> (*run)(PhaseContext& context);
  /// The results in lines for people.
  std::string (*summary)(const boost::json::object& results);
};

std::string_view name_of(PhaseKind kind);
const Phase& phase_of(PhaseKind kind);

extern const Phase kProjectionsPhase, kSparsifyPhase, kExpertsPhase, kRoutersPhase, kAdaptPhase;

// What phases have in common.

/// All blocks of the task's model.
std::vector<nn::TransformerBlock*> blocks_of(Task& task);

/// What routers of a kind make scores of their last product by.
ops::Activation score_activation(RouterKind kind);
/// Throws Error naming the phase unless the model has experts whose routers are of this kind.
void check_routers(Task& task, PhaseKind phase, RouterKind kind);

/// fit() of a phase: every report becomes a line of progress and one of metrics. `tokens_per_step` is for these; 0: a
/// whole batch. Saves itself every training.checkpoint_every steps, and goes on from there when the phase was stopped;
/// whether it was makes no difference. `parameters` are all that learns. Returns whether all steps were made.
bool fit_phase(PhaseContext& context, PhaseKind kind, const FitLoss& loss,
               const std::vector<nn::NamedParameter>& parameters, std::int64_t steps, const OptimizerConfig& optimizer,
               std::int64_t tokens_per_step = 0);

/// {"loss": ..., "accuracy": ...}, the latter for classifiers; and that as "loss 1.2345", "loss 0.4321 accuracy 81.5%".
boost::json::object to_json(const Score& score);
std::string score_text(const boost::json::object& score);

/// As std::snprintf, up to 200 characters.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace switchyard::train
