#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/io/safetensors.h"
#include "core/rng.h"
#include "core/tensor.h"

/// Checkpoints that survive being killed at any moment. One is a folder `step-00001200` with
/// `model.safetensors`, `optimizer.safetensors` and `state.json`, which holds the XXH64 of the other two and its own.
/// It is written under another name, flushed to the disk, and only then renamed: what bears the name is whole.
namespace switchyard::train {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// What a checkpoint holds. `state` is the caller's: random state, data position, schedule, config, ...
struct Checkpoint {
  std::int64_t step = 0;
  NamedTensors model;
  NamedTensors optimizer;
  boost::json::object state;
};

/// A checkpoint opened for reading; its checksums have been verified. Tensors are read as they are asked for.
struct OpenCheckpoint {
  std::filesystem::path path;
  std::int64_t step = 0;
  SafetensorsFile model;
  SafetensorsFile optimizer;
  boost::json::object state;
};

/// Writes `checkpoint` into `folder` (made where missing), and when it is durable removes all but the newest `keep`.
/// Checkpoints of later steps are removed too: they belong to a past that resuming from an earlier step has left.
/// Returns the new folder. On failure throws Error naming path and cause, and leaves the older ones untouched.
std::filesystem::path save_checkpoint(const std::filesystem::path& folder, const Checkpoint& checkpoint,
                                      std::int64_t keep);

/// "step-00001200".
std::string checkpoint_name(std::int64_t step);

/// Opens one checkpoint and verifies it; throws Error naming the file and what is wrong with it.
OpenCheckpoint open_checkpoint(const std::filesystem::path& path);

/// The newest checkpoint in `folder` that verifies, or none. Each damaged one passed over is told to `report` in one
/// line: `checkpoint: runs/a/checkpoints/step-00001200/model.safetensors: ...; trying the one before`.
std::optional<OpenCheckpoint> latest_good(const std::filesystem::path& folder,
                                          const std::function<void(const std::string&)>& report);

/// The same, to go on from; none where a run begins. Throws Error where all that `folder` holds are damaged: a run that
/// began anew would remove them.
std::optional<OpenCheckpoint> checkpoint_to_continue(const std::filesystem::path& folder,
                                                     const std::function<void(const std::string&)>& report);

/// Whether a checkpoint holds the weights of a model and nothing to go on from, as that of an imported one does.
bool holds_weights_only(const OpenCheckpoint& checkpoint);

/// The checkpoints in `folder` by step, oldest first. Unverified.
std::vector<std::pair<std::int64_t, std::filesystem::path>> list_checkpoints(const std::filesystem::path& folder);

/// Copies every tensor of `file` over the tensor of that name in `targets`; throws Error (naming `file`) unless names,
/// shapes and dtypes agree one to one.
void load_tensors(const SafetensorsFile& file, const NamedTensors& targets);

/// Throws Error naming the first key at which `saved`, the config section `name` of the checkpoint at `path`, differs
/// from `present`: `checkpoint: .../step-00001200: was made with model.layers 4, this run has 6`.
void check_same_config(const std::filesystem::path& path, const std::string& name, const boost::json::value& saved,
                       const boost::json::value& present);

/// The object `name` in a checkpoint's state; throws Error naming the checkpoint that has none.
const boost::json::object& state_section(const OpenCheckpoint& checkpoint, const char* name);
/// check_same_config for the sections `model` and `data` of `saved`, the checkpoint's configuration: what else a run is
/// configured by may change when it goes on.
void check_continues(const OpenCheckpoint& checkpoint, const boost::json::object& saved,
                     const boost::json::object& present);

/// For the section `generator` of a checkpoint's state.
boost::json::object to_json(const GeneratorState& state);
/// From the section `generator` of a checkpoint's state; throws Error naming the number that is missing.
GeneratorState saved_generator(const OpenCheckpoint& checkpoint);

}  // namespace switchyard::train
