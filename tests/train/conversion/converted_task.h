#pragma once

#include "moe/conversion/convert.h"
#include "tests/train/tiny_run.h"
#include "train/tasks/language_model_task.h"

namespace switchyard::train {

/// A dense language model of two blocks, trained for some steps on tiny_text(), as a task. The run lives in a folder of
/// its own.
class DenseTask {
 public:
  explicit DenseTask(ops::Activation activation = ops::Activation::relu)
      : run_(trained(folder_.path(), activation)), task_(run_, {}, [](const std::string&) {}) {}

  LanguageModelTask& operator*() { return task_; }
  LanguageModelTask* operator->() { return &task_; }

  const std::filesystem::path& run() const { return run_; }

 private:
  static std::filesystem::path trained(const std::filesystem::path& folder, ops::Activation activation) {
    Config config = tiny_config(folder);
    config.model.dropout = 0;
    config.model.attention = {.kind = moe::AttentionKind::dense, .heads = 2};
    config.model.feedforward = {
        .kind = moe::FeedForwardKind::dense, .activation = activation, .bias = true, .width = 32};
    const RunFolder run = RunFolder::create(config);
    train_run(run, config);
    return run.path();
  }

  testing::TemporaryFolder folder_;
  std::filesystem::path run_;
  LanguageModelTask task_;
};

/// Eight experts of four neurons in each block, with routers that know nothing.
inline std::vector<moe::DynamicFeedForward*> convert(LanguageModelTask& task) {
  moe::ConversionOptions options;
  options.expert_width = 4;
  options.router.hidden = 8;
  return moe::convert_feed_forwards(task.model(), options);
}

}  // namespace switchyard::train
