#include "train/tasks/classification_task.h"

#include <algorithm>

#include "autograd/grad_mode.h"
#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"
#include "train/checkpoint.h"
#include "train/run_folder.h"
#include "train/tasks/image_classification_task.h"
#include "train/tasks/text_classification_task.h"
#include "train/training_state.h"

namespace switchyard::train {

ClassificationTask::ClassificationTask(const ClassifierConfig& config, std::int64_t training_examples,
                                       std::uint64_t content)
    : config_(config),
      order_(training_examples, config.training.batch, static_cast<std::uint64_t>(config.training.seed), content) {}

void ClassificationTask::place(nn::Module& model) const {
  model.to(dtype_of(config_.training.dtype));
  model.to(device());
}

Variable ClassificationTask::training_loss() {
  const Batch next = batch(Part::training, order_.next());
  return nn::classifier_loss(logits(next), next.labels).total;
}

void ClassificationTask::run_training_batch() {
  const NoGradGuard no_grad;
  const bool was_training = model().training();
  model().eval();
  logits(batch(Part::training, order_.next()));
  model().train(was_training);
}

ClassificationTask::Batch ClassificationTask::validation_batch(std::int64_t begin, std::int64_t count) const {
  std::vector<data::ExampleTurn> turns;
  const std::int64_t end = std::min(begin + count, validation_examples());
  for (std::int64_t example = begin; example < end; ++example) turns.push_back({example, 0});
  return batch(Part::validation, turns);
}

Score ClassificationTask::evaluate() {
  const NoGradGuard no_grad;
  const bool was_training = model().training();
  model().eval();
  const Tensor sums = Tensor::zeros({2}, DType::f64, device());  // loss, examples classified right
  const std::int64_t examples = validation_examples();
  for (std::int64_t begin = 0; begin < examples; begin += config_.training.batch) {
    const Batch some = validation_batch(begin, config_.training.batch);
    const nn::LayerOutput output = logits(some);
    const Tensor loss = nn::classifier_loss(output, some.labels).cross_entropy.data();
    const Tensor right = ops::binary(ops::Binary::equal, ops::argmax(output.output.data()), some.labels);
    ops::accumulate(sums.slice(0, 0, 1), loss, static_cast<double>(some.labels.numel()));
    ops::accumulate(sums.slice(0, 1, 2), ops::sum(right.to(DType::f64)));
  }
  model().train(was_training);
  const std::vector<double> totals = sums.to_vector<double>();
  const auto count = static_cast<double>(examples);
  return {totals[0] / count, totals[1] / count, examples * tokens_per_example()};
}

Pass ClassificationTask::pass_of(const Batch& batch) {
  return {[this, batch] {
            const NoGradGuard no_grad;
            return logits(batch).output.data();
          },
          batch.labels.numel() * tokens_per_example()};
}

Pass ClassificationTask::validation_pass() { return pass_of(validation_batch(0, config_.training.batch)); }

Exhibit ClassificationTask::exhibit() {
  const Batch first = validation_batch(0, std::max<std::int64_t>(Exhibit::kTokens / tokens_per_example(), 1));
  return {pass_of(first), [this, first](const std::vector<double>& macs) { return describe(first, macs); }};
}

std::unique_ptr<ClassificationTask> new_classification_task(const ClassifierConfig& config,
                                                            const std::filesystem::path& run,
                                                            const std::function<void(const std::string&)>& report) {
  if (config.model.kind == ClassifierKind::text_classifier)
    return std::make_unique<TextClassificationTask>(config, RunFolder::text_path(run), report);
  return std::make_unique<ImageClassificationTask>(config, report);
}

std::unique_ptr<ClassificationTask> open_classification_task(const std::filesystem::path& run,
                                                             const TaskOptions& options,
                                                             const std::function<void(const std::string&)>& report) {
  ClassifierConfig config = load_config<ClassifierConfig>(RunFolder::config_path(run));
  if (!options.device.empty()) config.training.device = options.device;
  if (options.batch > 0) config.training.batch = options.batch;
  config.training.seed = static_cast<std::int64_t>(options.seed);
  validate(config);
  const auto checkpoint = latest_good(RunFolder::checkpoints_path(run), report);
  check(checkpoint.has_value(), "run folder: ", run.string(), ": holds no checkpoint to load");
  auto task = new_classification_task(config, run, report);
  load_tensors(checkpoint->model, state_tensors(task->model()));
  task->model().eval();
  return task;
}

}  // namespace switchyard::train
