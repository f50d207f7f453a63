#include "train/conversion/conversion.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <fstream>
#include <sstream>

#include "core/io/atomic_file.h"
#include "core/rng.h"
#include "moe/conversion/convert.h"
#include "train/checkpoint.h"
#include "train/conversion/compute_map.h"
#include "train/json_text.h"
#include "train/training_state.h"

namespace switchyard::train {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using Say = std::function<void(const std::string&)>;

fs::path phase_path(const fs::path& folder, PhaseKind phase) { return folder / name_of(phase); }

ConversionConfig read_config(const fs::path& folder) {
  const json::object values = RunFolder::read_config_object(folder);
  check(is_conversion_config(values), "conversion: ", folder.string(),
        ": holds something else, expected the folder of a conversion");
  return config_from_json<ConversionConfig>(values);
}

/// Throws Error unless a conversion configured as `saved` can go on as `present`: phases may be added or left out at
/// the end, measured it may be otherwise, all else must be the same.
void check_continues(const fs::path& folder, const ConversionConfig& saved, const ConversionConfig& present) {
  const std::size_t common = std::min(saved.phases.size(), present.phases.size());
  const bool prefix = std::equal(saved.phases.begin(), saved.phases.begin() + common, present.phases.begin());
  std::error_code code;
  const bool same_model = fs::equivalent(saved.model, present.model, code);  // whichever way it is spelled
  const json::object before = to_json(saved), now = to_json(present);
  for (const auto& item : before)
    if (item.key() != "sweep" && (item.key() != "phases" || !prefix) && (item.key() != "model" || !same_model))
      check_same_config(folder, std::string(item.key()), item.value(), now.at(item.key()));
}

/// Throws Error where the device cannot be had or a phase does not fit the model: before any work, not after hours of
/// it.
void check_phases_fit(const ConversionConfig& config, const std::string& device, const Say& report) {
  const auto scratch = open_task(config.model, {device, config.training.batch}, report);
  for (const PhaseKind phase : config.phases) phase_of(phase).reshape(*scratch, config);
}

/// Makes the folder, or checks that the one there is the same conversion, and stores the configuration in it.
RunFolder open_folder(const fs::path& folder, const ConversionConfig& config, const std::string& device,
                      const Say& report) {
  std::error_code code;
  const bool begun = fs::exists(RunFolder::config_path(folder), code);
  if (!begun) check_phases_fit(config, device, report);
  // Locked first of all: another program may be at work in it.
  RunFolder locked = begun ? RunFolder::open(folder) : RunFolder::create_at(folder);
  if (begun) check_continues(folder, read_config(folder), config);
  locked.store(to_json(config));
  return locked;
}

/// Configuration and device of the measurements at `path`; empty where there are none.
json::object measured_with(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) return {};
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const json::value sweep = parse_json(text, path.string());
  const json::object* found = sweep.if_object();
  if (!found || !found->contains("config") || !found->contains("device")) return {};
  return {{"config", found->at("config")}, {"device", found->at("device")}};
}

/// How far a conversion has come.
struct Progress {
  std::vector<json::object> results;         ///< of the finished phases
  std::int64_t steps = 0;                    ///< theirs
  std::optional<OpenCheckpoint> unfinished;  ///< what the phase after them saved on its way
};

/// Brings `task` to where the finished phases of a conversion have brought it.
Progress continue_from(const fs::path& folder, const ConversionConfig& config, Task& task, const Say& report) {
  Progress progress;
  std::optional<OpenCheckpoint> last;
  for (const PhaseKind phase : config.phases) {
    auto checkpoint = latest_good(phase_path(folder, phase), report);
    if (!checkpoint || !checkpoint->state.contains("results")) {
      progress.unfinished = std::move(checkpoint);
      break;
    }
    phase_of(phase).reshape(task, config);
    progress.results.push_back(state_section(*checkpoint, "results"));
    last = std::move(checkpoint);
  }
  if (last) {
    load_tensors(last->model, state_tensors(task.model()));
    task.restore(state_section(*last, "data"));
    progress.steps = last->step;
  }
  return progress;
}

}  // namespace

fs::path dense_run(const fs::path& model) {
  fs::path run = model;
  for (std::vector<fs::path> conversions; is_conversion_config(RunFolder::read_config_object(run));) {
    for (const fs::path& seen : conversions)
      check(!fs::equivalent(run, seen), "conversion: ", run.string(), ": was made from itself, expected from a run");
    conversions.push_back(run);
    const fs::path source = read_config(run).model;
    check(fs::is_directory(source), "conversion: ", run.string(), ": was made from ", source.string(),
          ", which is no folder, seen from the present one");
    run = source;
  }
  return run;
}

bool is_conversion_config(const json::object& config) { return config.contains("phases"); }

Conversion::Conversion(const fs::path& folder, const ConversionConfig& config, const std::string& device, Say say)
    : folder_(folder),
      config_(config),
      say_(std::move(say)),
      lock_(open_folder(folder, config, device, say_)),
      task_(open_task(config.model, {device, config.training.batch, static_cast<std::uint64_t>(config.training.seed)},
                      say_)) {
  task_->model().eval();
  Progress progress = continue_from(folder_, config_, *task_, say_);
  results_ = std::move(progress.results);
  steps_ = progress.steps;
  unfinished_ = std::move(progress.unfinished);
  metrics_.emplace(lock_.metrics_path(), unfinished_ ? unfinished_->step : steps_);
}

bool Conversion::run(const std::function<bool()>& stop) {
  while (results_.size() < config_.phases.size()) {
    const PhaseKind phase = config_.phases[results_.size()];
    // As after a restart, so that it makes no difference: random numbers from the beginning, a memory that is empty.
    seed_all(static_cast<std::uint64_t>(config_.training.seed));
    task_->restore(task_->state());
    std::int64_t steps = 0;
    const auto record = [&](std::int64_t step, const json::object& values) {
      json::object line = {{"phase", name_of(phase)}};
      line.insert(values.begin(), values.end());
      metrics_->write(steps_ + step, line);
      steps = step;
    };
    PhaseContext context{*task_, config_, phase_path(folder_, phase), steps_, std::exchange(unfinished_, {}), say_,
                         record, stop};
    std::optional<json::object> results = phase_of(phase).run(context);
    if (!results) return false;
    record(steps, {{"results", *results}});
    say_(phase_of(phase).summary(*results));
    steps_ += steps;
    save_checkpoint(phase_path(folder_, phase),
                    {steps_, state_tensors(task_->model()), {}, {{"data", task_->state()}, {"results", *results}}}, 1);
    results_.push_back(std::move(*results));
  }
  return true;
}

void Conversion::measure() {
  if (!config_.has(PhaseKind::routers) && !config_.has(PhaseKind::adapt)) return;
  const fs::path path = folder_ / "sweep.json";
  std::ostringstream device;
  device << task_->model().parameters().at(0).device();
  const json::object made_with = {{"config", to_json(config_)}, {"device", device.str()}};
  if (measured_with(path) == made_with) return;

  const TaskOptions options = {device.str(), config_.training.batch};
  const Measurement dense =
      train::measure(*open_task(dense_run(config_.model), options, say_), config_.sweep.measurement);
  SweepConfig settings = config_.sweep;
  if (config_.routers.kind == RouterKind::moefication) settings.dynk_max = settings.dynk = {};  // no norms to compare
  json::object result = sweep(*task_, settings, dense, say_);
  result.insert(made_with.begin(), made_with.end());
  if (!result.at("curves").as_array().empty()) {
    set_gates_near(task_->model(), result, settings.map_share);
    write_file(folder_ / "compute_map.json", pretty_json(compute_map(*task_)));
    moe::set_gates(task_->model(), {});
  }
  write_file(path, pretty_json(result));
}

std::optional<json::object> Conversion::results(PhaseKind phase) const {
  for (std::size_t i = 0; i < results_.size(); ++i)
    if (config_.phases[i] == phase) return results_[i];
  return std::nullopt;
}

std::string Conversion::summary() const {
  std::string text;
  for (std::size_t i = 0; i < results_.size(); ++i) text += phase_of(config_.phases[i]).summary(results_[i]);
  return text;
}

std::unique_ptr<Task> load_converted(const fs::path& folder, const TaskOptions& options, const Say& report) {
  const ConversionConfig config = read_config(folder);
  dense_run(folder);  // throws where there is none
  TaskOptions original = options;
  if (original.batch == 0) original.batch = config.training.batch;
  auto task = open_task(config.model, original, report);
  task->model().eval();
  const std::size_t finished = continue_from(folder, config, *task, report).results.size();
  check(finished > 0, "conversion: ", folder.string(), ": no phase of it is finished");
  const auto tell = [&](const std::string& what) { report("conversion: " + folder.string() + ": " + what); };
  if (finished < config.phases.size())
    tell("its phase " + std::string(name_of(config.phases[finished])) +
         " is not finished; the model is as the one before has left it");
  if (config.phases[finished - 1] == PhaseKind::experts)
    tell("its routers are not trained; gates other than `all` choose experts by chance");
  return task;
}

}  // namespace switchyard::train
