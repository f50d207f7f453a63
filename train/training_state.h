#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/loader.h"
#include "nn/optim/optimizer.h"
#include "nn/optim/schedule.h"
#include "nn/transformer.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/text.h"

namespace switchyard::train {

/// The model that `config` describes, on its device and in its dtype, with weights drawn from its seed.
std::unique_ptr<nn::LanguageModel> build_model(const Config& config, const data::Tokenizer& tokenizer);
std::unique_ptr<nn::Optimizer> build_optimizer(const Config& config, const nn::LanguageModel& model);
nn::Schedule build_schedule(const Config& config);
/// The live parameters and buffers of a model by name: what a checkpoint's model file holds.
NamedTensors state_tensors(const nn::Module& model);
/// The batches of a run; each is worked off in config.training.gradient_accumulation parts.
data::Loader build_loader(const Config& config, const data::TokenFile& tokens);

/// What one step left behind.
struct StepRecord {
  std::int64_t step = 0;     ///< 1 for the first
  double loss = 0;           ///< cross-entropy, nats per token
  double gradient_norm = 0;  ///< of all parameters together, before clipping
  bool finite() const;
};

/// Everything that changes while a model trains: weights, optimiser, place in the text, random numbers, step. It can be
/// saved between any two steps and continues from there exactly (on the CPU to the bit).
class TrainingState {
 public:
  /// Seeds the default generators and starts at step 0.
  TrainingState(const Config& config, const TokenizedText& text);

  /// One optimiser step. Nothing waits for the device.
  void advance();
  /// Steps done.
  std::int64_t step() const { return step_; }
  std::int64_t tokens_per_step() const;
  double learning_rate() const { return optimizer_->learning_rate(); }
  nn::LanguageModel& model() { return *model_; }
  Device device() const { return device_; }

  /// True when take_records() must be called before the next step.
  bool records_full() const { return pending_ == kMostRecords; }
  /// The records of the steps since the last call. Waits for the device.
  std::vector<StepRecord> take_records();

  Checkpoint snapshot() const;
  /// Continues from a checkpoint; throws Error naming what does not fit. Records not yet taken are dropped.
  void restore(const OpenCheckpoint& checkpoint);
  /// Name of the first parameter that holds a NaN or an infinity; empty for none. Waits for the device.
  std::string nonfinite_parameter() const;

 private:
  static constexpr std::int64_t kMostRecords = 1024;

  void clear_memories();
  /// Forward and backward of rows begin..end of the batch, whose loss counts `share` of the whole. Adds to `loss`.
  void accumulate_gradients(const data::Batch& batch, std::int64_t part, double share, const Tensor& loss);
  NamedTensors memory_tensors() const;

  Config config_;
  Device device_;
  data::Loader loader_;
  std::unique_ptr<nn::LanguageModel> model_;
  std::unique_ptr<nn::Optimizer> optimizer_;
  nn::Schedule schedule_;
  std::vector<nn::SegmentMemory> memories_;  // one for each part of the batch; empty without memory
  std::int64_t step_ = 0;
  Tensor records_;  // f64 [kMostRecords, 2]: loss and gradient norm, on the device
  std::int64_t pending_ = 0;
};

}  // namespace switchyard::train
