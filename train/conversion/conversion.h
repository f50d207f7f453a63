#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "train/conversion/config.h"
#include "train/conversion/phase.h"
#include "train/metrics.h"
#include "train/run_folder.h"
#include "train/tasks/open.h"

/// Conversions of trained dense models into dynamic-k mixtures of experts, phase by phase, in a folder that holds
///   config.json     every key, resolved; `model` names the run, or the other conversion, that is converted
///   metrics.jsonl   progress of the phases; steps count on from phase to phase
///   sweep.json      what the model is worth and costs at every setting of its gates; see sweep.h
///   compute_map.json    what some tokens of the validation data cost; see compute_map.h
///   <phase>/        a checkpoint (see checkpoint.h) of the model as that phase left it, with the phase's results; of a
///                   phase that is not finished, one of what it is training
namespace switchyard::train {

/// A conversion in progress.
class Conversion {
 public:
  /// Makes `folder` where it is missing, or opens it to go on from its last checkpoint. Lines for people go to
  /// `say`. Throws Error when `folder` holds something else, or a conversion of another model or configuration.
  Conversion(const std::filesystem::path& folder, const ConversionConfig& config, const std::string& device,
             std::function<void(const std::string&)> say);

  /// Runs the phases that are not finished. `stop` is asked between steps: a phase that is stopped goes on from its
  /// last checkpoint next time. The result is the same, on the CPU to the bit, however often that happens. Returns
  /// whether all are finished.
  bool run(const std::function<bool()>& stop);

  /// Measures the model, as the last finished phase left it, at every setting of the section `sweep`, beside the dense
  /// model that it comes from, and writes sweep.json: what sweep() returns, with the configuration as "config" and the
  /// device as "device"; and compute_map.json, with the gates that sweep.map_share asks for. Routers of
  /// MoEfication are measured with topk gates only. Does nothing where that file holds the same configuration and
  /// device, or where the phases train no routers.
  void measure();

  /// The model as the last finished phase left it.
  Task& task() { return *task_; }
  /// What a finished phase found; none for others.
  std::optional<boost::json::object> results(PhaseKind phase) const;
  /// A table of what the finished phases found, for people.
  std::string summary() const;

 private:
  std::filesystem::path folder_;
  ConversionConfig config_;
  std::function<void(const std::string&)> say_;
  RunFolder lock_;
  std::unique_ptr<Task> task_;
  std::optional<MetricsLog> metrics_;         // opened once it is known how many steps are done
  std::vector<boost::json::object> results_;  // of the finished phases
  std::int64_t steps_ = 0;                    // theirs
  std::optional<OpenCheckpoint> unfinished_;  // of the phase to go on with
};

/// The run that a conversion of `model`, a run or a conversion itself, goes back to. Throws Error where the way there
/// ends or goes round in a circle.
std::filesystem::path dense_run(const std::filesystem::path& model);

/// Whether `config`, of a folder of any kind, is a conversion's.
bool is_conversion_config(const boost::json::object& config);

/// The model of a conversion as its last finished phase left it, with the data of the run it came from. Its gates are
/// `all` (see moe::set_gates). Throws Error when no phase is finished; that some are not, or that no phase has trained
/// the routers, is told to `report`.
std::unique_ptr<Task> load_converted(const std::filesystem::path& folder, const TaskOptions& options,
                                     const std::function<void(const std::string&)>& report);

}  // namespace switchyard::train
