#pragma once

#include "data/loader.h"
#include "train/config.h"
#include "train/sample.h"
#include "train/tasks/open.h"
#include "train/text.h"

namespace switchyard::train {

/// The language model of a run that train_lm made, on the run's text.
class LanguageModelTask : public Task {
 public:
  /// See open_task.
  LanguageModelTask(const std::filesystem::path& run, const TaskOptions& options,
                    const std::function<void(const std::string&)>& report);

  nn::LanguageModel& model() override { return *trained_.model; }
  std::int64_t layers() const override { return trained_.model->layers(); }
  nn::TransformerBlock& block(std::int64_t index) override { return trained_.model->block(index); }

  Variable training_loss() override;
  void run_training_batch() override;
  Score evaluate() override;
  /// The loss of some of the windows of evaluate(), but without segment memory.
  Pass validation_pass() override;
  /// At most as many tokens as the context has.
  std::optional<Pass> decoding_pass(std::int64_t tokens) override;
  /// The first tokens, in windows of the context that do not see each other.
  Exhibit exhibit() override;
  std::int64_t tokens_per_batch() const override;

  boost::json::object state() const override;
  /// A segment memory starts empty there.
  void restore(const boost::json::object& state) override;

  /// The run's, with the options of this task.
  const Config& config() const { return trained_.config; }
  const TokenizedText& text() const { return text_; }

 private:
  Device device() const { return Device::parse(trained_.config.training.device); }
  /// The next batch on the model's device; the memory to be used with it is ready.
  data::Batch next_batch();
  nn::SegmentMemory* memory() { return memory_.length > 0 ? &memory_ : nullptr; }

  TrainedModel trained_;
  TokenizedText text_;
  data::Loader loader_;
  nn::SegmentMemory memory_;  // of the training batches; length 0 for models without
};

}  // namespace switchyard::train
