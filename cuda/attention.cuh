#pragma once

#include "core/kernels/attention.h"
#include "core/philox.h"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {

constexpr int kMaxHeadWidth = 256;
constexpr float kLog2e = 1.4426950408889634f;
using Bf16 = __nv_bfloat16;

/// A [B, T, H, d] operand; stride 1 on d.
template <class D>
struct Heads {
  D* data;
  std::int64_t batch, token, head;
  int width;

  __device__ D* row(int b, int h, int t) const { return data + b * batch + t * token + h * head; }
};

template <class T>
Heads<device_t<T>> heads_of(const Tensor& x) {
  return {pointer<T>(x), x.stride(0), x.stride(1), x.stride(2), static_cast<int>(x.size(3))};
}

template <class D>
struct AttentionProblem {
  using A = compute_t<D>;
  Heads<D> query, key, value;
  int batch, heads, queries, keys;
  A scale;
  bool causal;
  std::int64_t query_offset;
  const bool *mask, *key_padding;
  const D* position;  // [R, H, d] or null
  std::int64_t position_row, position_head, position_zero, positions;
  double dropout;
  std::uint64_t seed, stream_offset;
  const std::int64_t* stream_base;

  /// Keys that query i may see under causality.
  __device__ int key_end(int i) const {
    return causal ? static_cast<int>(min(static_cast<std::int64_t>(keys), i + query_offset + 1)) : keys;
  }
  __device__ bool visible(int b, int i, int j) const {
    if (i < 0 || i >= queries || j < 0 || j >= key_end(i)) return false;
    if (mask && mask[static_cast<std::int64_t>(i) * keys + j]) return false;
    return !(key_padding && key_padding[static_cast<std::int64_t>(b) * keys + j]);
  }
  /// The position key of a pair; null without one.
  __device__ const D* position_of(int h, int i, int j) const {
    const std::int64_t row = j - i - query_offset + position_zero;
    return position && row >= 0 && row < positions ? position + row * position_row + h * position_head : nullptr;
  }
  __device__ A logit(int b, int h, int i, int j) const {
    const D* q = query.row(b, h, i);
    const D* k = key.row(b, h, j);
    const D* p = position_of(h, i, j);
    A sum = 0;
    if (p) {
      for (int c = 0; c < query.width; ++c) sum += load(q + c) * (load(k + c) + load(p + c));
    } else {
      for (int c = 0; c < query.width; ++c) sum += load(q + c) * load(k + c);
    }
    return scale * sum;
  }
  /// 0 or 1 / (1 - p).
  __device__ A dropout_factor(int b, int h, int i, int j) const {
    if (dropout == 0) return A(1);
    const std::uint64_t element = ((static_cast<std::uint64_t>(b) * heads + h) * queries + i) * keys + j;
    const auto start = static_cast<std::uint64_t>(*stream_base) + stream_offset;
    const float u = uniform_from_bits(philox_element(seed, start, element));
    return u < static_cast<float>(dropout) ? A(0) : static_cast<A>(1 / (1 - dropout));
  }
};

template <class T>
AttentionProblem<device_t<T>> problem_of(const Tensor& query, const Tensor& key, const Tensor& value,
                                         const ops::AttentionOptions& options) {
  using D = device_t<T>;
  const std::int64_t width = std::max(query.size(3), value.size(3));
  check(width <= kMaxHeadWidth, "attention: head width ", width, ", the CUDA kernel takes at most ", kMaxHeadWidth);
  AttentionProblem<D> p{};
  p.query = heads_of<T>(query);
  p.key = heads_of<T>(key);
  p.value = heads_of<T>(value);
  p.batch = static_cast<int>(query.size(0));
  p.queries = static_cast<int>(query.size(1));
  p.heads = static_cast<int>(query.size(2));
  p.keys = static_cast<int>(key.size(1));
  p.scale = static_cast<compute_t<D>>(options.scale);
  p.causal = options.causal;
  p.query_offset = options.query_offset;
  p.mask = options.mask.defined() ? options.mask.data<bool>() : nullptr;
  p.key_padding = options.key_padding.defined() ? options.key_padding.data<bool>() : nullptr;
  if (options.position_key.defined()) {
    p.position = pointer<T>(options.position_key);
    p.position_row = options.position_key.stride(0);
    p.position_head = options.position_key.stride(1);
    p.positions = options.position_key.size(0);
    p.position_zero = options.position_zero;
  }
  p.dropout = options.dropout;
  if (options.dropout > 0) {
    p.seed = options.stream.seed;
    p.stream_offset = options.stream.offset;
    p.stream_base = options.stream.base.data<std::int64_t>();
  }
  return p;
}

// Versions for bf16 on the tensor cores; delta is dout . out per query.
using Problem = AttentionProblem<Bf16>;

/// f(integral_constant) of the head width rounded up to one that has kernels.
template <class F>
void with_padded_width(int width, F&& f) {
  if (width <= 64) f(std::integral_constant<int, 64>{});
  else if (width <= 80) f(std::integral_constant<int, 80>{});
  else if (width <= 112) f(std::integral_constant<int, 112>{});
  else f(std::integral_constant<int, 128>{});
}

// With mma.sync, in attention_bf16*.cu: every option, heads of up to 128 channels.
bool has_tensor_core_attention(const Problem& p, Device device);
void launch_attention(const Problem& p, const Heads<Bf16>& out, float* log_normalizer, cudaStream_t stream);
void launch_attention_backward(const Problem& p, const Heads<Bf16>& dout, const float* log_normalizer,
                               const float* delta, const Heads<Bf16>& dquery, const Heads<Bf16>& dkey,
                               const Heads<Bf16>& dvalue, cudaStream_t stream);
/// dposition [R, H, d] dense, after launch_attention_backward.
void launch_position_gradient(const Problem& p, const Heads<Bf16>& dout, const float* log_normalizer,
                              const float* delta, Bf16* dposition, Device device);

// With wgmma, in attention_hopper*.cu: without position keys, for operands that Hopper's copy engine can read. `out` is
// the output, or its gradient in the backward pass.
bool has_hopper_attention(const Problem& p, const Heads<Bf16>& out, Device device);
void launch_hopper_attention(const Problem& p, const Heads<Bf16>& out, float* log_normalizer, Device device);
void launch_hopper_attention_backward(const Problem& p, const Heads<Bf16>& dout, const float* log_normalizer,
                                      const float* delta, const Heads<Bf16>& dquery, const Heads<Bf16>& dkey,
                                      const Heads<Bf16>& dvalue, Device device);

}  // namespace switchyard::cuda
