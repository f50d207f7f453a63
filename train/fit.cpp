#include "train/fit.h"

#include <chrono>
#include <cmath>

#include "core/ops/elementwise.h"
#include "core/rng.h"
#include "nn/optim/clip.h"
#include "train/optimization.h"

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

bool fit(const FitLoss& loss, const std::vector<nn::NamedParameter>& parameters, const FitOptions& options,
         const std::function<void(const FitReport&)>& report, const std::function<bool()>& stop) {
  check(options.log_every >= 1, "fit: log_every is ", options.log_every, ", expected at least 1");
  const Variables variables = variables_of(parameters);
  const auto optimizer = build_optimizer(options.optimizer, parameters);
  const nn::Schedule schedule = build_schedule(options.optimizer.schedule, options.steps);
  const Device device = variables.at(0).device();
  const Tensor losses = Tensor::zeros({1}, DType::f64, device);
  std::int64_t reported = 0;
  Clock::time_point start = Clock::now();
  for (std::int64_t step = 0; step < options.steps; ++step) {
    if (stop()) return false;
    optimizer->zero_grad();
    const Variable value = loss(step);
    value.backward();
    ops::accumulate(losses, value.data());
    const nn::ClipResult clipped = nn::clip_gradients(variables, options.clip);
    optimizer->set_learning_rate(options.optimizer.learning_rate * schedule(step));
    optimizer->step(clipped.factor);
    default_generator(device).end_step();
    const std::int64_t done = step + 1;
    if (done % options.log_every != 0 && done != options.steps) continue;
    FitReport line;
    line.step = done;
    line.steps = options.steps;
    const auto count = static_cast<double>(done - reported);
    line.loss = losses.item<double>() / count;
    line.gradient_norm = clipped.norm.item<double>();
    line.learning_rate = optimizer->learning_rate();
    line.seconds_per_step = std::chrono::duration<double>(Clock::now() - start).count() / count;
    check_finite(line);
    report(line);
    losses.fill(0);
    reported = done;
    start = Clock::now();
  }
  optimizer->zero_grad();
  return true;
}

}  // namespace switchyard::train
