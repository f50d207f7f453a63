// The layers of docs/design.md's table: forward and backward pass, beside dense products of the same multiply-adds.

#include "autograd/ops/attention.h"
#include "bench/gpu/row.h"
#include "moe/sigma_moe.h"
#include "moe/switch_head.h"

namespace switchyard::bench {
namespace {

/// Forward and backward of a layer for x [batch, length, width].
template <class Layer>
Row time_layer(Layer& layer, std::int64_t batch, std::int64_t length, std::int64_t width) {
  layer.to(DType::bf16);
  const Variable x(random_tensor({batch, length, width}), true);
  const Tensor dy = random_tensor({batch, length, width});
  const auto call = [&] {
    layer.forward(x).output.backward(dy);
    layer.zero_grad();
    x.zero_grad();
  };
  call();
  reset_peak_memory(Device::cuda());
  Row row{.ms = median_ms(call)};
  row.peak_mib = peak_mib();
  row.tokens = static_cast<double>(batch * length);
  return row;
}

Row switch_head(std::int64_t batch, std::int64_t length) {
  const std::int64_t width = 1024, heads = 4, head = 112, k = 2;
  moe::SwitchHeadOptions options;
  options.width = width;
  options.heads = heads;
  options.head_width = head;
  options.experts = 4;
  options.k = k;
  moe::SwitchHead layer(options);
  Row row = time_layer(layer, batch, length, width);
  const std::int64_t n = batch * length;
  row.dense_ms = dense_ms(n, {{width, 2 * heads * head}, {width, k * heads * head}, {k * heads * head, width}}, true);
  row.flops = 6.0 * static_cast<double>(n) * width * heads * head * (2 + 2 * k) +
              6.0 * static_cast<double>(n) * heads * head * static_cast<double>(length);
  return row;
}

Row sigma_moe(std::int64_t width, std::int64_t experts, std::int64_t size, std::int64_t k) {
  moe::SigmaMoeOptions options;
  options.width = width;
  options.experts = experts;
  options.expert_width = size;
  options.k = k;
  moe::SigmaMoe layer(options);
  const std::int64_t batch = 64, length = 512;
  Row row = time_layer(layer, batch, length, width);
  row.dense_ms = dense_ms(batch * length, {{width, k * size}, {k * size, width}}, true);
  row.flops = 12.0 * static_cast<double>(batch * length) * static_cast<double>(width * k * size);
  return row;
}

Row attention_row(bool with_backward) {
  const std::int64_t batch = 4, length = 8192, heads = 16, width = 128;
  ops::AttentionOptions options;
  options.scale = 0.088;
  options.causal = true;
  const auto operand = [&] { return Variable(random_tensor({batch, length, heads, width}), with_backward); };
  const Variable q = operand(), k = operand(), v = operand();
  const Tensor dout = random_tensor({batch, length, heads, width});
  const auto call = [&] {
    const Variable out = attention(q, k, v, options);
    if (!with_backward) return;
    out.backward(dout);
    for (const Variable& x : {q, k, v}) x.zero_grad();
  };
  call();
  reset_peak_memory(Device::cuda());
  Row row{.ms = median_ms(call, 2, 7)};
  row.peak_mib = peak_mib();
  // Counted as the field does: 2 products forward, 5 backward, half of the square.
  row.flops = (with_backward ? 7.0 : 2.0) * 2 * batch * heads * width * static_cast<double>(length) * length / 2;
  row.tokens = static_cast<double>(batch * length);
  return row;
}

}  // namespace

std::vector<Benchmark> layer_benchmarks() {
  return {{"switchhead_64x512", [] { return switch_head(64, 512); }},
          {"switchhead_8x4096", [] { return switch_head(8, 4096); }},
          {"sigma_moe_1024_32x128_k4", [] { return sigma_moe(1024, 32, 128, 4); }},
          {"sigma_moe_1024_128x128_k16", [] { return sigma_moe(1024, 128, 128, 16); }},
          {"moe_2048_64x1024_k8", [] { return sigma_moe(2048, 64, 1024, 8); }},
          {"moe_4096_8x14336_k2", [] { return sigma_moe(4096, 8, 14336, 2); }},
          {"attention_4x8192_16x128_forward", [] { return attention_row(false); }},
          {"attention_4x8192_16x128_training", [] { return attention_row(true); }}};
}

}  // namespace switchyard::bench
