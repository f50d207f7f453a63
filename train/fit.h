#pragma once

#include <functional>
#include <vector>

#include "nn/module.h"
#include "train/config_sections.h"

namespace switchyard::train {

struct FitOptions {
  std::int64_t steps = 0;
  OptimizerConfig optimizer;
  double clip = 0;  ///< longest gradient (L2 norm over all parameters together); 0: any
  std::int64_t log_every = 10;
};

/// What happened since the report before.
struct FitReport {
  std::int64_t step = 0, steps = 0;
  double loss = 0;           ///< mean
  double gradient_norm = 0;  ///< of the last step, before clipping
  double learning_rate = 0;  ///< of the last step
  double seconds_per_step = 0;
};

/// The loss of step i = 0, 1, ..., a scalar that backward() is called on.
using FitLoss = std::function<Variable(std::int64_t step)>;

/// A plain training loop: gradients of `loss` for `parameters`, clipping, an optimiser step, `options.steps` times. It
/// tells `report` after every `log_every` steps and the last; only then does it wait for the device. `stop` is asked
/// before each step. Returns whether all steps were made. Deterministic, given the state of the default generators.
/// Throws Error when the loss or the gradient is not finite.
bool fit(const FitLoss& loss, const std::vector<nn::NamedParameter>& parameters, const FitOptions& options,
         const std::function<void(const FitReport&)>& report, const std::function<bool()>& stop);

}  // namespace switchyard::train
