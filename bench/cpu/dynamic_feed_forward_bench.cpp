// Converted models (D2DMoE) in which each token runs a share of the experts, in expert sizes from the papers' 4 neurons
// up, beside the dense ones that they were split from, timed in turns: a feed-forward with its router and gate, and
// whole models that decode. The times are medians.
//
//   bin/bench_cpu --benchmark_filter=DynamicFeedForward
//   bin/bench_cpu --benchmark_filter=DecodeConverted

#include <algorithm>
#include <cmath>
#include <vector>

#include "autograd/grad_mode.h"
#include "bench/cpu/common.h"
#include "moe/conversion/convert.h"
#include "moe/language_model.h"

namespace switchyard::bench {
namespace {

constexpr int kTurns = 30;

/// The most neurons up to four times the width that make whole experts.
std::int64_t hidden_of(std::int64_t width, std::int64_t neurons) { return 4 * width - 4 * width % neurons; }

moe::ConversionOptions conversion_to(std::int64_t neurons) {
  moe::ConversionOptions options;
  options.expert_width = neurons;
  options.cluster = false;
  options.router.hidden = 64;
  return options;
}

/// The tau of dynk_max at which tokens with these scores [N, E] run that share of the experts on average.
double tau_for(const Tensor& scores, double share) {
  std::vector<double> values = scores.to_vector<double>();
  const std::int64_t experts = scores.size(1);
  for (auto row = values.begin(); row != values.end(); row += experts) {
    const double largest = *std::max_element(row, row + experts);
    for (auto value = row; value != row + experts; ++value) *value /= largest;
  }
  const auto last = values.begin() + std::llround((1 - share) * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), last, values.end());
  return 1 - *last;
}

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Times converted() and dense() in turns, some calls of each at a time.
void compare(benchmark::State& state, int calls, const auto& converted, const auto& dense) {
  const auto seconds = [calls](const auto& work) {
    work();
    return seconds_of([&] {
             for (int i = 0; i < calls; ++i) work();
           }) /
           calls;
  };
  std::vector<double> converted_times, dense_times;
  for (auto _ : state) {
    dense_times.push_back(seconds(dense));
    converted_times.push_back(seconds(converted));
    state.SetIterationTime(converted_times.back());
  }
  const double own = median(converted_times), beside = median(dense_times);
  state.counters["converted_us"] = own * 1e6;
  state.counters["dense_us"] = beside * 1e6;
  state.counters["of_dense_time"] = own / beside;
}

/// Arguments: width, neurons per expert, tokens, percent of the experts that a token runs.
void DynamicFeedForward(benchmark::State& state) {
  const std::int64_t width = state.range(0), neurons = state.range(1), tokens = state.range(2);
  const NoGradGuard no_gradients;
  nn::FeedForwardOptions options;
  options.width = width;
  options.hidden = hidden_of(width, neurons);
  options.bias = true;
  nn::FeedForward dense(options);
  const auto converted = moe::convert(dense, conversion_to(neurons));
  const Variable x(normal({1, tokens, width}));
  const Tensor scores = converted->router().forward(x).data().select(0, 0);
  converted->set_gate({moe::GateMode::dynk_max, 1, tau_for(scores, static_cast<double>(state.range(3)) / 100)});
  compare(
      state, tokens == 1 ? 20 : 1, [&] { benchmark::DoNotOptimize(converted->forward(x).output.data().raw()); },
      [&] { benchmark::DoNotOptimize(dense.forward(x).output.data().raw()); });
}
BENCHMARK(DynamicFeedForward)
    ->ArgsProduct({{128, 256, 768}, {4, 24, 128}, {1, 1024}, {10, 25, 100}})
    ->ArgsProduct({{128, 256, 768}, {4, 24, 128}, {8}, {25}})
    ->Iterations(kTurns)
    ->Unit(benchmark::kMicrosecond)
    ->UseManualTime();

/// One token after a text of 128 others. Arguments: width, layers, neurons per expert, percent of the experts run.
void DecodeConverted(benchmark::State& state) {
  const std::int64_t width = state.range(0), neurons = state.range(2), hidden = hidden_of(width, neurons);
  constexpr std::int64_t kLength = 128;
  moe::LanguageModelConfig config;
  config.vocabulary_size = 256;
  config.width = width;
  config.layers = state.range(1);
  config.attention.kind = moe::AttentionKind::dense;
  config.attention.heads = width / 32;
  config.feedforward = {.kind = moe::FeedForwardKind::dense, .bias = true, .width = hidden};
  const auto dense = moe::build_language_model(config), converted = moe::build_language_model(config);
  moe::convert_feed_forwards(*converted, conversion_to(neurons));
  const std::int64_t experts = hidden / neurons;
  moe::set_gates(*converted, {moe::GateMode::topk, std::max<std::int64_t>(experts * state.range(3) / 100, 1)});
  const Tensor text = ops::uniform({1, kLength}, generator().next(kLength), 0, 255).to(DType::i64);
  const Tensor token = text.slice(1, 0, 1);
  const auto decoding = [&](nn::LanguageModel& model) {
    model.eval();
    nn::DecodingState start;
    model.decode(text, start);
    model.decode(token, start);  // makes room for the tokens below
    return [&model, &token, start] {
      nn::DecodingState continued = start;  // shares its memory: each call writes to the same place
      benchmark::DoNotOptimize(model.decode(token, continued).raw());
    };
  };
  compare(state, 5, decoding(*converted), decoding(*dense));
}
BENCHMARK(DecodeConverted)
    ->ArgsProduct({{128}, {3}, {4, 24, 128}, {25}})
    ->ArgsProduct({{256}, {6}, {4, 24, 128}, {25}})
    ->ArgsProduct({{768}, {12}, {4, 24, 128}, {25}})
    ->Iterations(kTurns)
    ->Unit(benchmark::kMicrosecond)
    ->UseManualTime();

}  // namespace
}  // namespace switchyard::bench
