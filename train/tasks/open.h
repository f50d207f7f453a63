#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "train/task.h"

namespace switchyard::train {

/// How a task differs from the run it is opened from.
struct TaskOptions {
  std::string device;      ///< "" for the run's own
  std::int64_t batch = 0;  ///< examples (windows of text) per training batch; 0: the run's
  std::uint64_t seed = 1;  ///< of the order of the training data
};

/// The model of a run as its newest good checkpoint holds it, with the data that it was trained on; or that of a
/// conversion (see conversion.h), with the data of the run it came from. In evaluation mode. Checkpoints that
/// had to be passed over are told to `report`. Throws Error when `run` is no run's folder or holds no checkpoint.
std::unique_ptr<Task> open_task(const std::filesystem::path& run, const TaskOptions& options,
                                const std::function<void(const std::string&)>& report);

}  // namespace switchyard::train
