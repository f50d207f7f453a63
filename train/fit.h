#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "nn/module.h"
#include "nn/optim/optimizer.h"
#include "nn/optim/schedule.h"
#include "train/config_sections.h"

namespace switchyard::train {

struct FitOptions {
  std::int64_t steps = 0;
  OptimizerConfig optimizer;
  double clip = 0;  ///< longest gradient (L2 norm over all parameters together); 0: any
  std::int64_t log_every = 10;
  std::int64_t checkpoint_every = 0;  ///< 0: never
};

/// What happened since the report before.
struct FitReport {
  std::int64_t step = 0, steps = 0;
  double loss = 0;           ///< mean
  double gradient_norm = 0;  ///< of the last step, before clipping
  double learning_rate = 0;  ///< of the last step
  double seconds_per_step = 0;
};

/// Whether what is done every `every` steps is due after `step` of them; 0: never.
inline bool due(std::int64_t step, std::int64_t every) { return every > 0 && step % every == 0; }

/// The loss of step i = 0, 1, ..., a scalar that backward() is called on.
using FitLoss = std::function<Variable(std::int64_t step)>;

/// The steps of a training loop one by one, for a loop that does more between them than fit().
class FitSteps {
 public:
  FitSteps(const std::vector<nn::NamedParameter>& parameters, const FitOptions& options);

  /// Gradients of `loss` for the parameters, clipping, an optimiser step. Nothing waits for the device.
  void advance(const FitLoss& loss);
  /// Steps made.
  std::int64_t step() const { return step_; }
  /// What happened since the last call, which must be at least one step. Waits for the device. Throws Error when the
  /// loss or the gradient is not finite.
  FitReport report();

  const FitOptions& options() const { return options_; }
  nn::Optimizer& optimizer() { return *optimizer_; }
  /// Goes on after `step` steps, with an optimiser whose state was put back.
  void continue_after(std::int64_t step);

 private:
  Variables parameters_;
  FitOptions options_;
  std::unique_ptr<nn::Optimizer> optimizer_;
  nn::Schedule schedule_;
  Device device_;
  Tensor losses_;         // f64 [1]: sum since the last report
  Tensor gradient_norm_;  // of the last step
  std::int64_t step_ = 0, reported_ = 0;
  double seconds_ = 0;  // since the last report
};

/// A plain training loop: advances by `loss` up to `options.steps`. `stop` is asked before each step. `report` is told
/// after every `log_every` steps, before `save` and after the last step; only then does the loop wait for the device.
/// `save` is called after every `checkpoint_every` steps but the last. Returns whether all steps were made.
/// Deterministic, given the state of the default generators. Throws Error when the loss or the gradient is not finite.
bool fit(FitSteps& steps, const FitLoss& loss, const std::function<void(const FitReport&)>& report,
         const std::function<bool()>& stop, const std::function<void()>& save = {});

}  // namespace switchyard::train
