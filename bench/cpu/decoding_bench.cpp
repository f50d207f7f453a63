// One decoded token that continues a text of so many others (the argument): dense models, small and wide, the wide one
// also with few heads of keys and values, the small one also with Transformer-XL's positions; and SwitchAll.

#include "bench/cpu/common.h"
#include "moe/language_model.h"

namespace switchyard::bench {
namespace {

moe::LanguageModelConfig dense(std::int64_t width, std::int64_t layers) {
  moe::LanguageModelConfig config;
  config.vocabulary_size = 256;
  config.width = width;
  config.layers = layers;
  config.attention.kind = moe::AttentionKind::dense;
  config.attention.heads = width / 64;
  config.feedforward.kind = moe::FeedForwardKind::dense;
  return config;
}

void run_decoding(benchmark::State& state, const moe::LanguageModelConfig& config) {
  const auto model = moe::build_language_model(config);
  model->eval();
  const std::int64_t length = state.range(0);
  const Tensor text = ops::uniform({1, length}, generator().next(length), 0, 255).to(DType::i64);
  const Tensor token = text.slice(1, 0, 1);
  nn::DecodingState start;
  model->decode(text.slice(1, 1, length), start);
  model->decode(token, start);  // makes room for the tokens below
  for (auto _ : state) {
    nn::DecodingState continued = start;  // shares its memory: each iteration writes to the same place
    benchmark::DoNotOptimize(model->decode(token, continued).raw());
  }
}

void DecodeSmall(benchmark::State& state) { run_decoding(state, dense(256, 4)); }
void DecodeWide(benchmark::State& state) { run_decoding(state, dense(768, 12)); }

void DecodeSmallXl(benchmark::State& state) {
  moe::LanguageModelConfig config = dense(256, 4);
  config.position = moe::PositionKind::xl;
  run_decoding(state, config);
}

void DecodeWideSharedKeys(benchmark::State& state) {
  moe::LanguageModelConfig config = dense(768, 12);
  config.attention.key_value_heads = 3;
  run_decoding(state, config);
}

void DecodeSwitchAll(benchmark::State& state) {
  moe::LanguageModelConfig config;
  config.vocabulary_size = 256;
  run_decoding(state, config);
}

BENCHMARK(DecodeSmall)->Arg(128)->Arg(1024)->Unit(benchmark::kMicrosecond)->UseRealTime();
BENCHMARK(DecodeSmallXl)->Arg(128)->Arg(1024)->Unit(benchmark::kMicrosecond)->UseRealTime();
BENCHMARK(DecodeSwitchAll)->Arg(128)->Arg(1024)->Unit(benchmark::kMicrosecond)->UseRealTime();
BENCHMARK(DecodeWide)->Arg(128)->Arg(1024)->Unit(benchmark::kMicrosecond)->UseRealTime();
BENCHMARK(DecodeWideSharedKeys)->Arg(128)->Arg(1024)->Unit(benchmark::kMicrosecond)->UseRealTime();

}  // namespace
}  // namespace switchyard::bench
