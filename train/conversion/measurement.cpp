#include "train/conversion/measurement.h"

#include <algorithm>
#include <chrono>

#include "autograd/grad_mode.h"
#include "core/graph.h"
#include "core/ops/elementwise.h"

namespace switchyard::train {
namespace {

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Mean loss of the next training batches, in evaluation mode. The place in the training data is put back.
Score training_score(Task& task, std::int64_t batches) {
  const NoGradGuard no_grad;
  const boost::json::object place = task.state();
  const bool was_training = task.model().training();
  task.model().eval();
  const Tensor sum = Tensor::zeros({1}, DType::f64, task.model().parameters().at(0).device());
  for (std::int64_t i = 0; i < batches; ++i) ops::accumulate(sum, task.training_loss().data());
  task.model().train(was_training);
  task.restore(place);
  return {sum.item<double>() / static_cast<double>(batches), std::nullopt, batches * task.tokens_per_batch()};
}

}  // namespace

double seconds_per_token(const Pass& pass, std::int64_t repeats, Device device) {
  for (int i = 0; i < 2; ++i) pass.run().to(Device::cpu());
  Tensor result;
  std::optional<DeviceGraph> graph;
  if (device.is_cuda()) graph.emplace(device, [&] { result = pass.run(); });
  std::vector<double> seconds(static_cast<std::size_t>(repeats));
  for (double& time : seconds)
    time = seconds_of([&] {
      if (graph) graph->replay();
      else result = pass.run();
      result.to(Device::cpu()).to_vector<double>();  // waits for the device
    });
  const auto middle = seconds.begin() + repeats / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle / static_cast<double>(pass.tokens);
}

Measurement measure(Task& task, const MeasurementOptions& options) {
  const std::vector<moe::ConvertibleLayer> layers = moe::convertible_layers(task.model());
  check(!layers.empty(), "measure: the model has no dense feed-forward or projection, and none that was converted");
  Measurement result;
  for (const moe::ConvertibleLayer& layer : layers)
    if (layer.converted) layer.converted->collect(true);
  result.score = options.training_batches > 0 ? training_score(task, options.training_batches) : task.evaluate();
  for (const moe::ConvertibleLayer& layer : layers) {
    result.macs_per_token += layer.measured();
    result.dense_macs_per_token += layer.dense;
    if (!layer.converted) continue;
    result.layers.push_back({layer.measured(), layer.converted->statistics().summary()});
    layer.converted->collect(false);
  }

  if (options.repeats > 0) {
    const Device device = task.model().parameters().at(0).device();
    const bool was_training = task.model().training();
    task.model().eval();
    result.seconds_per_token = seconds_per_token(task.validation_pass(), options.repeats, device);
    if (const std::optional<Pass> decoding = task.decoding_pass(options.decoded_tokens))
      result.seconds_per_decoded_token = seconds_per_token(*decoding, options.repeats, device);
    task.model().train(was_training);
  }
  return result;
}

}  // namespace switchyard::train
