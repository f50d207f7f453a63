#include "train/evaluation.h"

#include <algorithm>

#include "autograd/grad_mode.h"
#include "core/ops/elementwise.h"
#include "data/loader.h"

namespace switchyard::train {
namespace {

/// Sums the loss over batches, on the device.
class LossSum {
 public:
  explicit LossSum(nn::LanguageModel& model)
      : model_(model), device_(model.parameters().at(0).device()), nats_(Tensor::zeros({1}, DType::f64, device_)) {}

  void add(const Tensor& inputs, const Tensor& targets, nn::SegmentMemory* memory = nullptr) {
    const nn::LanguageModelLoss loss = model_.loss(inputs.to(device_), targets.to(device_), data::kIgnoreIndex, memory);
    ops::accumulate(nats_, loss.cross_entropy.data(), static_cast<double>(inputs.numel()));
    tokens_ += inputs.numel();
  }
  Evaluation result() const { return {nats_.item<double>() / static_cast<double>(tokens_), tokens_}; }

 private:
  nn::LanguageModel& model_;
  Device device_;
  Tensor nats_;
  std::int64_t tokens_ = 0;
};

Evaluation evaluate_windows(nn::LanguageModel& model, const data::TokenFile& tokens, const EvaluationOptions& options) {
  const data::Batch all = data::validation_windows(tokens, options.windows, options.context);
  LossSum sum(model);
  for (std::int64_t begin = 0; begin < all.inputs.size(0); begin += options.batch) {
    const std::int64_t end = std::min(begin + options.batch, all.inputs.size(0));
    sum.add(all.inputs.slice(0, begin, end).contiguous(), all.targets.slice(0, begin, end).contiguous());
  }
  return sum.result();
}

Evaluation evaluate_streams(nn::LanguageModel& model, const data::TokenFile& tokens, const EvaluationOptions& options) {
  const std::int64_t most_rows = std::max<std::int64_t>((tokens.size() - 1) / options.context, 1);
  data::Loader loader(tokens, {.batch = std::min({options.batch, options.windows, most_rows}),
                               .context = options.context,
                               .sampling = data::Sampling::contiguous_streams});
  const std::int64_t rows = loader.options().batch;
  const std::int64_t segments =
      std::min(loader.windows_per_epoch() / rows, std::max<std::int64_t>(options.windows / rows, 1));
  nn::SegmentMemory memory{options.memory, {}};
  LossSum sum(model);
  for (std::int64_t i = 0; i < segments; ++i) {
    const data::Batch batch = loader.next();
    sum.add(batch.inputs, batch.targets, &memory);
  }
  return sum.result();
}

}  // namespace

Evaluation evaluate(nn::LanguageModel& model, const data::TokenFile& tokens, const EvaluationOptions& options) {
  NoGradGuard no_grad;
  const bool was_training = model.training();
  model.eval();
  const Evaluation result =
      options.memory > 0 ? evaluate_streams(model, tokens, options) : evaluate_windows(model, tokens, options);
  model.train(was_training);
  return result;
}

}  // namespace switchyard::train
