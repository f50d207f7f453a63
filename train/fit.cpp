#include "train/fit.h"

#include <chrono>
#include <cmath>

#include "core/ops/elementwise.h"
#include "core/rng.h"
#include "nn/optim/clip.h"
#include "train/optimization.h"
#include "train/progress.h"

namespace switchyard::train {
namespace {

using Clock = std::chrono::steady_clock;

Variables variables_of(const std::vector<nn::NamedParameter>& parameters) {
  Variables variables;
  for (const nn::NamedParameter& p : parameters) variables.push_back(p.variable);
  return variables;
}

void check_finite(const FitReport& report) {
  check(std::isfinite(report.loss), "fit: the loss is ", report.loss, " in a step up to ", report.step,
        ", expected a finite one; a smaller learning rate may help");
  check(std::isfinite(report.gradient_norm), "fit: the gradient of step ", report.step,
        " is not finite; a smaller learning rate may help");
}

}  // namespace

FitSteps::FitSteps(const std::vector<nn::NamedParameter>& parameters, const FitOptions& options)
    : parameters_(variables_of(parameters)),
      options_(options),
      optimizer_(build_optimizer(options.optimizer, parameters)),
      schedule_(build_schedule(options.optimizer.schedule, options.steps)),
      device_(parameters_.at(0).device()),
      losses_(Tensor::zeros({1}, DType::f64, device_)) {}

void FitSteps::advance(const FitLoss& loss) {
  const auto start = Clock::now();
  optimizer_->zero_grad();
  const Variable value = loss(step_);
  value.backward();
  ops::accumulate(losses_, value.data());
  const nn::ClipResult clipped = nn::clip_gradients(parameters_, options_.clip);
  gradient_norm_ = clipped.norm;
  optimizer_->set_learning_rate(options_.optimizer.learning_rate * schedule_(step_));
  optimizer_->step(clipped.factor);
  default_generator(device_).end_step();
  ++step_;
  seconds_ += seconds_since(start);
}

FitReport FitSteps::report() {
  check(step_ > reported_, "fit: nothing to report, no step was made since step ", reported_);
  const auto start = Clock::now();  // waiting for a device is training time
  const auto count = static_cast<double>(step_ - reported_);
  FitReport report{.step = step_, .steps = options_.steps};
  report.loss = losses_.item<double>() / count;
  report.gradient_norm = gradient_norm_.item<double>();
  report.learning_rate = optimizer_->learning_rate();
  report.seconds_per_step = (seconds_ + seconds_since(start)) / count;
  check_finite(report);
  losses_.fill(0);
  reported_ = step_;
  seconds_ = 0;
  return report;
}

void FitSteps::continue_after(std::int64_t step) {
  step_ = reported_ = step;
  losses_.fill(0);
  seconds_ = 0;
}

bool fit(FitSteps& steps, const FitLoss& loss, const std::function<void(const FitReport&)>& report,
         const std::function<bool()>& stop, const std::function<void()>& save) {
  const FitOptions& options = steps.options();
  check(options.log_every >= 1, "fit: log_every is ", options.log_every, ", expected at least 1");
  while (steps.step() < options.steps) {
    if (stop()) return false;
    steps.advance(loss);
    const bool last = steps.step() == options.steps, saves = !last && due(steps.step(), options.checkpoint_every);
    if (last || saves || due(steps.step(), options.log_every)) report(steps.report());  // throws where not finite
    if (saves) save();
  }
  steps.optimizer().zero_grad();
  return true;
}

}  // namespace switchyard::train
