// A whole training step (forward, backward, clipping, AdamW) of configurations in configs/: the demo's SwitchAll model,
// and a dense model of about as many parameters. Counters: tokens per second, peak memory of the step, and gemm_share,
// the share of the step spent in the GEMM library, measured in steps of its own because the profiler costs time.

#include "bench/cpu/common.h"
#include "core/profiler.h"
#include "core/storage.h"
#include "moe/accounting.h"
#include "moe/language_model.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "train/config.h"

namespace switchyard::bench {
namespace {

/// The demo's model for bytes, and the same with dense layers widened until the parameters agree.
moe::LanguageModelConfig model_of(const train::Config& config, bool dense) {
  moe::LanguageModelConfig model = config.model;
  model.vocabulary_size = 256;
  if (!dense) return model;
  const std::int64_t parameters = moe::model_cost(model).parameters();
  model.attention = {};
  model.attention.kind = moe::AttentionKind::dense;
  model.attention.heads = 4;
  model.feedforward = {};
  model.feedforward.kind = moe::FeedForwardKind::dense;
  for (model.feedforward.width = 16; moe::model_cost(model).parameters() < parameters;) model.feedforward.width += 16;
  return model;
}

class TrainingStep {
 public:
  TrainingStep(const moe::LanguageModelConfig& config, std::int64_t batch)
      : model_(moe::build_language_model(config)),
        optimizer_(nn::parameter_groups(model_->named_parameters(), 0.01)),
        tokens_(random_tokens(batch, config.context)),
        targets_(random_tokens(batch, config.context)) {}

  void run() {
    const nn::LanguageModelLoss loss = model_->loss(tokens_, targets_);
    optimizer_.zero_grad();
    loss.total.backward();
    optimizer_.step(nn::clip_gradients(model_->parameters(), 0.25).factor);
    benchmark::DoNotOptimize(loss.total.data().raw());
  }

 private:
  static Tensor random_tokens(std::int64_t batch, std::int64_t length) {
    static Generator generator(2);
    return ops::uniform({batch, length}, generator.next(batch * length), 0, 255).to(DType::i64);
  }

  std::unique_ptr<nn::LanguageModel> model_;
  nn::AdamW optimizer_;
  Tensor tokens_, targets_;
};

/// Share of the profiled time of a few steps that "gemm" had for itself.
double gemm_share(TrainingStep& step) {
  reset_profile();
  enable_profiler(true);
  {
    const ProfileScope whole("training step");
    for (int i = 0; i < 3; ++i) step.run();
  }
  enable_profiler(false);
  double gemm = 0, total = 0;
  for (const ProfileEntry& entry : profile()) {
    total += entry.exclusive_seconds;
    if (entry.name == "gemm") gemm += entry.exclusive_seconds;
  }
  return total > 0 ? gemm / total : 0;
}

void run_step(benchmark::State& state, bool dense) {
  const train::Config config = train::load_config<train::Config>(SWITCHYARD_SOURCE_DIR "/configs/demo.json");
  const moe::LanguageModelConfig model = model_of(config, dense);
  const std::int64_t batch = config.training.batch;
  TrainingStep step(model, batch);
  step.run();
  reset_peak_memory(Device::cpu());
  for (auto _ : state) step.run();
  const auto tokens = static_cast<double>(batch * model.context);
  const moe::ModelCost cost = moe::model_cost(model, batch);
  count_flops(state, 6 * cost.macs_per_token() * tokens);
  state.counters["tokens/s"] = benchmark::Counter(tokens, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["parameters"] = static_cast<double>(cost.parameters());
  state.counters["peak_MiB"] = static_cast<double>(memory_statistics(Device::cpu()).peak_bytes) / (1024.0 * 1024.0);
  state.counters["gemm_share"] = gemm_share(step);
}

void TrainStepSwitchAll(benchmark::State& state) { run_step(state, false); }
void TrainStepDense(benchmark::State& state) { run_step(state, true); }

BENCHMARK(TrainStepSwitchAll)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(TrainStepDense)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace switchyard::bench
