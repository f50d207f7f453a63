// One attention layer, forward and backward: SwitchHead beside dense attention of as many parameters. Rates count the
// multiply-accumulates of moe::model_cost (two operations each, three times the forward pass).

#include "bench/cpu/common.h"
#include "moe/accounting.h"
#include "moe/language_model.h"

namespace switchyard::bench {
namespace {

/// The attention of the SwitchHead paper's 47M models, RoPE, 256 tokens.
moe::LanguageModelConfig config_of(moe::AttentionKind kind) {
  moe::LanguageModelConfig config;
  config.width = 412;
  config.context = 256;
  config.attention.kind = kind;
  const bool dense = kind == moe::AttentionKind::dense;
  config.attention.heads = dense ? 10 : 2;
  config.attention.head_width = dense ? 40 : 76;
  config.attention.experts = 5;
  config.attention.k = 3;
  return config;
}

void run_attention(benchmark::State& state, moe::AttentionKind kind, bool backward) {
  const moe::LanguageModelConfig config = config_of(kind);
  const std::int64_t batch = state.range(0);
  const auto layer = moe::build_attention(config);
  const Variable x(normal({batch, config.context, config.width}), true);
  const Tensor dy = normal(x.shape());
  for (auto _ : state) {
    const Variable y = layer->forward(x).output;
    if (backward) y.backward(dy);
    layer->zero_grad();
    benchmark::DoNotOptimize(y.data().raw());
  }
  const double macs = moe::model_cost(config, batch).layer.attention_macs();
  count_flops(state, (backward ? 6 : 2) * macs * static_cast<double>(batch * config.context));
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(batch * config.context), benchmark::Counter::kIsIterationInvariantRate);
}

void SwitchHeadForward(benchmark::State& state) { run_attention(state, moe::AttentionKind::switchhead, false); }
void SwitchHeadForwardBackward(benchmark::State& state) { run_attention(state, moe::AttentionKind::switchhead, true); }
void DenseAttentionForward(benchmark::State& state) { run_attention(state, moe::AttentionKind::dense, false); }
void DenseAttentionForwardBackward(benchmark::State& state) { run_attention(state, moe::AttentionKind::dense, true); }

BENCHMARK(SwitchHeadForward)->Arg(4)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(DenseAttentionForward)->Arg(4)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(SwitchHeadForwardBackward)->Arg(4)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(DenseAttentionForwardBackward)->Arg(4)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace switchyard::bench
