#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/graph.h"
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
  /// On a GPU, whether steps are recorded as a graph, after some ordinary ones, and replayed: as they are unless this
  /// is called. The results are the same to the bit; the host has less to do. On the CPU steps are always ordinary.
  void use_graph(bool on);
  /// Whether the last step was a replay.
  bool replaying() const { return replaying_; }
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
  /// Continues from a checkpoint, or begins with its weights where it holds nothing else; throws Error naming what does
  /// not fit. Records not yet taken are dropped.
  void restore(const OpenCheckpoint& checkpoint);
  /// Name of the first parameter that holds a NaN or an infinity; empty for none. Waits for the device.
  std::string nonfinite_parameter() const;

 private:
  static constexpr std::int64_t kMostRecords = 1024;
  static constexpr std::int64_t kOrdinarySteps = 2;  // before one is recorded: the first make tables and choose kernels

  void clear_memories();
  /// True when the segment memories have reached their full length, or there are none: the steps are alike from then
  /// on.
  bool memories_full() const;
  /// Puts a batch where run_step() reads it.
  void load(const data::Batch& batch);
  /// The part of a step that a graph can record: all on the device, between tensors that stay where they are.
  void run_step();
  /// Forward and backward of one part of the batch.
  void accumulate_gradients(std::int64_t part);
  void record_graph();
  void replay_graph();
  NamedTensors memory_tensors() const;

  Config config_;
  Device device_;
  data::Loader loader_;
  std::unique_ptr<nn::LanguageModel> model_;
  std::unique_ptr<nn::Optimizer> optimizer_;
  nn::Schedule schedule_;
  std::vector<nn::SegmentMemory> memories_;  // one for each part of the batch; empty without memory
  std::int64_t step_ = 0;
  Tensor inputs_, targets_;  // i64 [batch, context], the present batch
  Tensor shares_;            // f64 [parts]: how much of the loss each part of the batch counts
  Tensor record_;            // f64 [2]: loss and gradient norm of the present step
  Tensor records_;           // f64 [kMostRecords, 2]: of the steps not yet taken
  std::int64_t pending_ = 0;
  bool graph_wanted_, replaying_ = false;
  std::int64_t ordinary_steps_ = 0;                // with full memories
  std::optional<DeviceGraph> graph_;               // of run_step()
  std::vector<nn::SegmentMemory> graph_memories_;  // where it reads and writes them
};

}  // namespace switchyard::train
