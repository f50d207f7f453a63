#pragma once

#include <memory>

#include "nn/module.h"
#include "nn/optim/optimizer.h"
#include "nn/optim/schedule.h"
#include "train/config_sections.h"

namespace switchyard::train {

/// The optimiser that `config` describes.
std::unique_ptr<nn::Optimizer> build_optimizer(const OptimizerConfig& config,
                                               const std::vector<nn::NamedParameter>& parameters);

/// The factor of the learning rate in each of `steps` steps.
nn::Schedule build_schedule(const ScheduleConfig& config, std::int64_t steps);

}  // namespace switchyard::train
