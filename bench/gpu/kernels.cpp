// One raw op each. The activations are 64 x 512 tokens of width 1024 unless the name says otherwise.

#include "bench/gpu/row.h"
#include "core/ops/index.h"
#include "core/ops/loss.h"
#include "core/ops/matmul.h"
#include "core/ops/norm.h"
#include "core/ops/optim.h"
#include "core/ops/routing.h"

namespace switchyard::bench {
namespace {

constexpr std::int64_t kTokens = 64 * 512, kWidth = 1024, kVocabulary = 8000;
constexpr double kActivationBytes = 2.0 * kTokens * kWidth;

struct Operands {
  Tensor first, second, third;
};

Operands three_activations() {
  const auto one = [] { return random_tensor({kTokens, kWidth}); };
  return {one(), one(), one()};
}

Row gemm(std::int64_t outputs, bool with_bias) {
  const Tensor x = random_tensor({kTokens, kWidth}), w = random_tensor({outputs, kWidth});
  const Tensor bias = with_bias ? random_tensor({outputs}) : Tensor();
  return {.ms = median_ms([&] { ops::linear(x, w, bias); }),
          .dense_ms = dense_ms(kTokens, {{kWidth, outputs}}, false),
          .flops = 2.0 * kTokens * kWidth * static_cast<double>(outputs)};
}

/// With `residual`, of the sum of two activations, which is a result too.
Row norm_forward(bool rms, bool residual) {
  const Tensor weight = random_tensor({kWidth}), bias = random_tensor({kWidth});
  const auto call = [&](const Operands& in) {
    const Tensor addend = residual ? in.second : Tensor();
    if (rms) ops::rms_norm(in.first, weight, 1e-6, addend);
    else ops::layer_norm(in.first, weight, bias, 1e-5, addend);
  };
  return {.ms = rotating_ms(2 * kActivationBytes, three_activations, call),
          .bytes = (residual ? 4 : 2) * kActivationBytes};
}

/// With `residual`, added to the gradient that reaches the sum on other ways.
Row norm_backward(bool rms, bool residual) {
  const Tensor weight = random_tensor({kWidth}), statistic = Tensor::ones({kTokens}, DType::f32);
  const auto call = [&](const Operands& in) {
    const Tensor dsum = residual ? in.third : Tensor();
    if (rms) ops::rms_norm_backward(in.first, in.second, weight, statistic, dsum);
    else ops::layer_norm_backward(in.first, in.second, weight, true, statistic, statistic, dsum);
  };
  return {.ms = rotating_ms(2 * kActivationBytes, three_activations, call),
          .bytes = (residual ? 4 : 3) * kActivationBytes};
}

Row fused_loss() {
  const Tensor x = random_tensor({kTokens, kWidth}), w = random_tensor({kVocabulary, kWidth});
  const Tensor targets = random_ids({kTokens}, kVocabulary);
  const auto call = [&] { ops::linear_cross_entropy(x, w, {}, targets, -100, true); };
  call();
  reset_peak_memory(Device::cuda());
  Row row{.ms = median_ms(call),
          .dense_ms = dense_ms(kTokens, {{kWidth, kVocabulary}}, true),
          .flops = 6.0 * kTokens * kWidth * kVocabulary};
  row.peak_mib = peak_mib();
  return row;
}

Row embedding(bool backward) {
  const auto make = [] { return Operands{random_tensor({kTokens, kWidth}), random_ids({kTokens}, kVocabulary), {}}; };
  const Tensor table = random_tensor({kVocabulary, kWidth});
  const auto call = [&](const Operands& in) {
    if (backward) ops::embedding_backward(in.first, in.second, kVocabulary);
    else ops::embedding(table, in.second);
  };
  return {.ms = rotating_ms(kActivationBytes, make, call),
          .bytes = kActivationBytes + 2.0 * kVocabulary * kWidth + 8.0 * kTokens};
}

/// 251M parameters in bf16, in matrices of a million, with what AdamW keeps of them.
std::vector<ops::AdamWSlot> parameters_251m() {
  std::vector<ops::AdamWSlot> slots(240);
  const Shape shape = {1024, 1024};
  for (ops::AdamWSlot& slot : slots) {
    slot.parameter = random_tensor(shape);
    slot.gradient = random_tensor(shape);
    slot.master = slot.parameter.to(DType::f32);
    slot.first_moment = Tensor::zeros(shape, DType::f32);
    slot.second_moment = Tensor::zeros(shape, DType::f32);
    slot.weight_decay = 0.01;
  }
  return slots;
}

Row adamw() {
  const auto slots = parameters_251m();
  const Tensor rate = Tensor::full({1}, 1e-4, DType::f64), step = Tensor::ones({1}, DType::i64);
  // The gradient is read; parameter, master and both moments are written, all but the parameter also read.
  return {.ms = median_ms([&] { ops::adamw(slots, rate, step, {}, 0.9, 0.999, 1e-8); }),
          .bytes = (2 + 2 + 3 * 8) * 240.0 * 1024 * 1024};
}

Row gradient_norm() {
  std::vector<Tensor> gradients;
  for (int i = 0; i < 240; ++i) gradients.push_back(random_tensor({1024, 1024}));
  return {.ms = median_ms([&] { ops::global_norm(gradients); }), .bytes = 2.0 * 240 * 1024 * 1024};
}

Row top_k(std::int64_t slots, std::int64_t experts, std::int64_t k) {
  const double bytes = 4.0 * kTokens * static_cast<double>(slots * (experts + k));
  const auto make = [&] { return random_tensor({kTokens, slots, experts}, DType::f32); };
  return {.ms = rotating_ms(bytes, make, [&](const Tensor& scores) { ops::top_k(scores, k); }), .bytes = bytes};
}

Row routing_plan(std::int64_t slots, std::int64_t experts, std::int64_t k) {
  const double bytes = 3 * 4.0 * kTokens * static_cast<double>(slots * k);  // the choices, and both orders of the pairs
  const auto make = [&] { return ops::top_k(random_tensor({kTokens, slots, experts}, DType::f32), k); };
  return {.ms = rotating_ms(bytes, make, [&](const Tensor& indices) { ops::routing_plan(indices, experts); }),
          .bytes = bytes};
}

}  // namespace

std::vector<Benchmark> kernel_benchmarks() {
  return {{"gemm_1024x4096", [] { return gemm(4096, false); }},
          {"gemm_bias_1024x4096", [] { return gemm(4096, true); }},
          {"layer_norm_forward", [] { return norm_forward(false, false); }},
          {"layer_norm_backward", [] { return norm_backward(false, false); }},
          {"rms_norm_forward", [] { return norm_forward(true, false); }},
          {"rms_norm_backward", [] { return norm_backward(true, false); }},
          {"layer_norm_residual_forward", [] { return norm_forward(false, true); }},
          {"layer_norm_residual_backward", [] { return norm_backward(false, true); }},
          {"rms_norm_residual_forward", [] { return norm_forward(true, true); }},
          {"rms_norm_residual_backward", [] { return norm_backward(true, true); }},
          {"linear_cross_entropy_8000", [] { return fused_loss(); }},
          {"embedding_forward_8000", [] { return embedding(false); }},
          {"embedding_backward_8000", [] { return embedding(true); }},
          {"adamw_251m", [] { return adamw(); }},
          {"gradient_norm_251m", [] { return gradient_norm(); }},
          {"top_k_32_k4", [] { return top_k(1, 32, 4); }},
          {"top_k_128_k16", [] { return top_k(1, 128, 16); }},
          {"top_k_4_heads_4_k2", [] { return top_k(4, 4, 2); }},
          {"routing_plan_32_k4", [] { return routing_plan(1, 32, 4); }},
          {"routing_plan_128_k16", [] { return routing_plan(1, 128, 16); }},
          {"routing_plan_4_heads_4_k2", [] { return routing_plan(4, 4, 2); }}};
}

}  // namespace switchyard::bench
