// GPU benchmarks: the rows of docs/design.md's table. Each row is timed with CUDA events (medians, random bf16 data)
// and set beside dense cuBLAS products of the same multiply-adds, timed in the same run.
//
//   bench_gpu [--only NAME] [--json FILE]

#include <boost/json.hpp>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>

#include "autograd/ops/attention.h"
#include "bench/gpu/timer.h"
#include "core/ops/matmul.h"
#include "core/ops/random.h"
#include "moe/accounting.h"
#include "moe/language_model.h"
#include "moe/sigma_moe.h"
#include "moe/switch_head.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"

namespace switchyard::bench {
namespace {

Tensor random_bf16(const Shape& shape) {
  static Generator generator(1, Device::cuda());
  return ops::uniform(shape, generator.next(shape.numel()), -1, 1, DType::bf16);
}

struct Row {
  std::string name;
  double ms = 0, dense_ms = 0;
  double flops = 0;  ///< useful floating-point operations of one call
  double tokens = 0;
  double peak_mib = 0;
};

/// Time of dense products x [n, k] w [k, m], forward and both gradients, for each (k, m).
double dense_ms(std::int64_t n, const std::vector<std::pair<std::int64_t, std::int64_t>>& products) {
  double total = 0;
  for (const auto& [k, m] : products) {
    const Tensor x = random_bf16({n, k}), w = random_bf16({k, m}), dy = random_bf16({n, m});
    total += median_ms([&] {
      ops::matmul(x, w);
      ops::matmul(dy, w.transpose(0, 1));
      ops::matmul(x.transpose(0, 1), dy);
    });
  }
  return total;
}

/// Forward and backward of a layer for x [batch, length, width].
template <class Layer>
Row time_layer(std::string name, Layer& layer, std::int64_t batch, std::int64_t length, std::int64_t width) {
  layer.to(DType::bf16);
  layer.to(Device::cuda());
  const Variable x(random_bf16({batch, length, width}), true);
  const Tensor dy = random_bf16({batch, length, width});
  const auto call = [&] {
    layer.forward(x).output.backward(dy);
    layer.zero_grad();
    x.zero_grad();
  };
  call();
  reset_peak_memory(Device::cuda());
  Row row{std::move(name), median_ms(call)};
  row.peak_mib = static_cast<double>(memory_statistics(Device::cuda()).peak_bytes) / (1 << 20);
  row.tokens = static_cast<double>(batch * length);
  return row;
}

Row switch_head(std::string name, std::int64_t batch, std::int64_t length) {
  const std::int64_t width = 1024, heads = 4, head = 112, k = 2;
  moe::SwitchHeadOptions options;
  options.width = width;
  options.heads = heads;
  options.head_width = head;
  options.experts = 4;
  options.k = k;
  moe::SwitchHead layer(options);
  Row row = time_layer(std::move(name), layer, batch, length, width);
  const std::int64_t n = batch * length;
  row.dense_ms = dense_ms(n, {{width, 2 * heads * head}, {width, k * heads * head}, {k * heads * head, width}});
  row.flops = 6.0 * static_cast<double>(n) * width * heads * head * (2 + 2 * k) +
              6.0 * static_cast<double>(n) * heads * head * static_cast<double>(length);
  return row;
}

Row sigma_moe(std::string name, std::int64_t width, std::int64_t experts, std::int64_t size, std::int64_t k) {
  moe::SigmaMoeOptions options;
  options.width = width;
  options.experts = experts;
  options.expert_width = size;
  options.k = k;
  moe::SigmaMoe layer(options);
  const std::int64_t batch = 64, length = 512;
  Row row = time_layer(std::move(name), layer, batch, length, width);
  row.dense_ms = dense_ms(batch * length, {{width, k * size}, {k * size, width}});
  row.flops = 12.0 * static_cast<double>(batch * length) * static_cast<double>(width * k * size);
  return row;
}

Row attention_row(std::string name, bool with_backward) {
  const std::int64_t batch = 4, length = 8192, heads = 16, width = 128;
  ops::AttentionOptions options;
  options.scale = 0.088;
  options.causal = true;
  const auto operand = [&] { return Variable(random_bf16({batch, length, heads, width}), with_backward); };
  const Variable q = operand(), k = operand(), v = operand();
  const Tensor dout = random_bf16({batch, length, heads, width});
  Row row{std::move(name), median_ms(
                               [&] {
                                 const Variable out = attention(q, k, v, options);
                                 if (!with_backward) return;
                                 out.backward(dout);
                                 for (const Variable& x : {q, k, v}) x.zero_grad();
                               },
                               2, 7)};
  // Counted as the field does: 2 products forward, 5 backward, half of the square.
  row.flops = (with_backward ? 7.0 : 2.0) * 2 * batch * heads * width * static_cast<double>(length) * length / 2;
  row.tokens = static_cast<double>(batch * length);
  return row;
}

Row training_step(std::string name, const moe::LanguageModelConfig& config, std::int64_t batch) {
  const auto model = moe::build_language_model(config);
  model->to(DType::bf16);
  model->to(Device::cuda());
  nn::AdamW optimizer(nn::parameter_groups(model->named_parameters(), 0.01));
  static Generator generator(3, Device::cuda());
  const std::int64_t n = batch * config.context;
  const auto tokens = [&] {
    return ops::uniform({batch, config.context}, generator.next(n), 0, static_cast<double>(config.vocabulary_size))
        .to(DType::i64);
  };
  const Tensor inputs = tokens(), targets = tokens();
  const auto step = [&] {
    const auto loss = model->loss(inputs, targets);
    optimizer.zero_grad();
    loss.total.backward();
    optimizer.step(nn::clip_gradients(model->parameters(), 0.25).factor);
    default_generator(Device::cuda()).end_step();
  };
  step();
  reset_peak_memory(Device::cuda());
  Row row{std::move(name), median_ms(step, 2, 7)};
  row.peak_mib = static_cast<double>(memory_statistics(Device::cuda()).peak_bytes) / (1 << 20);
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

struct Benchmark {
  const char* name;
  std::function<Row(std::string)> run;
};

const std::vector<Benchmark> kBenchmarks = {
    {"switchhead_64x512", [](std::string name) { return switch_head(name, 64, 512); }},
    {"switchhead_8x4096", [](std::string name) { return switch_head(name, 8, 4096); }},
    {"sigma_moe_1024_32x128_k4", [](std::string name) { return sigma_moe(name, 1024, 32, 128, 4); }},
    {"sigma_moe_1024_128x128_k16", [](std::string name) { return sigma_moe(name, 1024, 128, 128, 16); }},
    {"moe_2048_64x1024_k8", [](std::string name) { return sigma_moe(name, 2048, 64, 1024, 8); }},
    {"attention_4x8192_16x128_forward", [](std::string name) { return attention_row(name, false); }},
    {"attention_4x8192_16x128_training", [](std::string name) { return attention_row(name, true); }},
    {"train_dense_244m", [](std::string name) { return training_step(name, dense_244m(), 64); }},
    {"train_switchall_251m", [](std::string name) { return training_step(name, switch_all(true), 64); }},
    {"train_switchall_46m", [](std::string name) { return training_step(name, switch_all(false), 64); }},
};

int run(int argc, char** argv) {
  std::string only, json;
  for (int i = 1; i < argc; i += 2) {
    const bool has_value = i + 1 < argc;
    if (has_value && std::strcmp(argv[i], "--only") == 0) only = argv[i + 1];
    else if (has_value && std::strcmp(argv[i], "--json") == 0) json = argv[i + 1];
    else fail("bench_gpu: unknown argument ", argv[i], "; usage: bench_gpu [--only NAME] [--json FILE]");
  }
  boost::json::array results;
  std::cout << std::left << std::setw(36) << "row" << std::right << std::setw(10) << "ms" << std::setw(10) << "dense ms"
            << std::setw(8) << "ratio" << std::setw(10) << "TFLOP/s" << std::setw(12) << "k tokens/s" << std::setw(11)
            << "peak MiB" << '\n'
            << std::fixed;
  for (const Benchmark& benchmark : kBenchmarks) {
    if (std::string(benchmark.name).find(only) == std::string::npos) continue;
    const Row row = benchmark.run(benchmark.name);
    const double ratio = row.dense_ms > 0 ? row.ms / row.dense_ms : 0, tflops = row.flops / row.ms * 1e-9;
    std::cout << std::left << std::setw(36) << row.name << std::right << std::setprecision(3) << std::setw(10) << row.ms
              << std::setw(10) << row.dense_ms << std::setprecision(2) << std::setw(8) << ratio << std::setprecision(1)
              << std::setw(10) << tflops << std::setw(12) << row.tokens / row.ms << std::setw(11) << row.peak_mib
              << std::endl;
    results.push_back({{"row", row.name},
                       {"ms", row.ms},
                       {"dense_ms", row.dense_ms},
                       {"ratio", ratio},
                       {"tflops", tflops},
                       {"tokens_per_second", row.tokens / row.ms * 1e3},
                       {"peak_mib", row.peak_mib}});
  }
  if (!json.empty()) std::ofstream(json) << boost::json::serialize(results) << '\n';
  return 0;
}

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) {
  try {
    return switchyard::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
