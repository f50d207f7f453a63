// Whole training steps: loss, gradients, clipping and AdamW.

#include <optional>

#include "bench/gpu/row.h"
#include "core/graph.h"
#include "core/rng.h"
#include "moe/accounting.h"
#include "moe/language_model.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"

namespace switchyard::bench {
namespace {

/// A whole training step, `recorded` as a graph, as train_lm runs it, or kernel by kernel.
Row training_step(const moe::LanguageModelConfig& config, std::int64_t batch, bool recorded) {
  const auto model = moe::build_language_model(config);
  model->to(DType::bf16);
  nn::AdamW optimizer(nn::parameter_groups(model->named_parameters(), 0.01));
  const std::int64_t n = batch * config.context;
  const auto tokens = [&] { return random_ids({batch, config.context}, config.vocabulary_size); };
  const Tensor inputs = tokens(), targets = tokens();
  const auto step = [&] {
    const auto loss = model->loss(inputs, targets);
    optimizer.zero_grad();
    loss.total.backward();
    optimizer.step(nn::clip_gradients(model->parameters(), 0.25).factor);
    default_generator(Device::cuda()).end_step();
  };
  for (int i = 0; i < 2; ++i) step();
  optimizer.zero_grad();
  reset_peak_memory(Device::cuda());
  std::optional<DeviceGraph> graph;
  if (recorded) graph.emplace(Device::cuda(), step);
  const auto run_step = [&] { graph ? graph->replay() : step(); };
  Row row{.ms = median_ms(run_step, 2, 7)};
  row.peak_mib = peak_mib();
  row.tokens = static_cast<double>(n);
  row.flops = 6 * moe::model_cost(config, batch).macs_per_token() * static_cast<double>(n);
  return row;
}

moe::LanguageModelConfig switch_all(bool large) {
  moe::LanguageModelConfig config;
  config.vocabulary_size = 8000;
  config.width = large ? 1024 : 412;
  config.layers = large ? 18 : 16;
  config.context = large ? 512 : 256;
  config.attention.heads = large ? 4 : 2;
  config.attention.head_width = large ? 112 : 76;
  config.attention.experts = large ? 4 : 5;
  config.attention.k = 2;
  config.feedforward.experts = large ? 32 : 16;
  config.feedforward.expert_width = 128;
  config.feedforward.k = 4;
  return config;
}

moe::LanguageModelConfig dense_244m() {
  moe::LanguageModelConfig config = switch_all(true);
  config.attention = {};
  config.attention.kind = moe::AttentionKind::dense;
  config.attention.heads = 16;
  config.feedforward = {};
  config.feedforward.kind = moe::FeedForwardKind::dense;
  config.feedforward.width = 4110;
  return config;
}

}  // namespace

std::vector<Benchmark> training_benchmarks() {
  return {{"train_dense_244m", [] { return training_step(dense_244m(), 64, false); }},
          {"train_dense_244m_graph", [] { return training_step(dense_244m(), 64, true); }},
          {"train_switchall_251m", [] { return training_step(switch_all(true), 64, false); }},
          {"train_switchall_251m_graph", [] { return training_step(switch_all(true), 64, true); }},
          {"train_switchall_46m", [] { return training_step(switch_all(false), 64, false); }},
          {"train_switchall_46m_graph", [] { return training_step(switch_all(false), 64, true); }}};
}

}  // namespace switchyard::bench
