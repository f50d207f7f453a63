// The experts of a mask for a few tokens, as in decoding. There is one row for each weight, so nothing is gained by
// sorting or by the tensor cores: what counts is that the chosen experts' weights, and no others, are read once, by
// many blocks at a time, in vectors of up to 16 bytes. Two launches:
//   1. hidden: a block for each token, expert and 32 neurons; its threads share the rows of the weight.
//   2. sums: a block for each token and 32 bytes of columns; its threads share the neurons of all chosen experts.
// Every sum has a fixed order, so results do not vary.
//
// keep_chosen is the mask's part where all experts run: it reads only what is not zeroed or kept as a whole.

#include "core/kernels/masked_feed_forward.h"
#include "core/ops/norm.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / 32, kBlockNeurons = 32;
constexpr int kBlockColumnBytes = 32;

template <class D>
struct Layer {
  const D *up, *up_bias, *gate, *gate_bias, *down;  // biases and gate may be null
  int width, experts, neurons, outputs;             // D, E, S, M
  ops::Activation activation;
};

/// Adds up the sums of all threads with the same threadIdx.x % lanes, a power of two up to 32. Those of the first
/// `lanes` threads are complete afterwards.
template <int kValues, class A>
__device__ inline void add_over_block(A (&sums)[kValues], int lanes) {
  __shared__ A parts[kWarps][32][kValues];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < kValues; ++i)
    for (int distance = 16; distance >= lanes; distance /= 2)
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], distance);
  if (lane < lanes)
    for (int i = 0; i < kValues; ++i) parts[warp][lane][i] = sums[i];
  __syncthreads();
  if (threadIdx.x < lanes)
    for (int other = 1; other < kWarps; ++other)
      for (int i = 0; i < kValues; ++i) sums[i] += parts[other][lane][i];
  __syncthreads();
}

/// sums = x . the columns of weight [width, neurons] from `column` on, for the first `lanes` threads.
template <int kValues, class D>
__device__ inline void dot_columns(const D* x, const D* weight, int width, int neurons, int column, bool valid,
                                   int lanes, compute_t<D> (&sums)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) sums[i] = 0;
  if (valid) {
#pragma unroll 4
    for (int row = threadIdx.x / lanes; row < width; row += kBlock / lanes) {
      const auto values = *reinterpret_cast<const Vector<D, kValues>*>(weight + row * neurons + column);
      const auto factor = load(x + row);
#pragma unroll
      for (int i = 0; i < kValues; ++i) sums[i] += factor * load(&values.values[i]);
    }
  }
  add_over_block(sums, lanes);
}

/// hidden [N, E S], for chosen experts; a grid of (E, parts of S, N).
template <int kValues, class D>
__global__ void __launch_bounds__(kBlock)
    hidden_of_chosen(Layer<D> layer, const D* x, const bool* mask, int lanes, D* hidden) {
  using A = compute_t<D>;
  const int expert = blockIdx.x, token = blockIdx.z;
  if (!mask[token * layer.experts + expert]) return;
  const int column = blockIdx.y * kBlockNeurons + static_cast<int>(threadIdx.x) % lanes * kValues;
  const bool valid = threadIdx.x % lanes * kValues < kBlockNeurons && column < layer.neurons;
  const std::int64_t weight = static_cast<std::int64_t>(expert) * layer.width * layer.neurons;
  const D* row = x + static_cast<std::int64_t>(token) * layer.width;
  A sums[kValues], gates[kValues];
  dot_columns(row, layer.up + weight, layer.width, layer.neurons, column, valid, lanes, sums);
  if (layer.gate) dot_columns(row, layer.gate + weight, layer.width, layer.neurons, column, valid, lanes, gates);
  if (threadIdx.x >= lanes || !valid) return;
  for (int i = 0; i < kValues; ++i) {
    const int neuron = expert * layer.neurons + column + i;
    A value = sums[i] + (layer.up_bias ? load(layer.up_bias + neuron) : A(0));
    if (layer.gate)
      value *= apply_rare_unary(layer.activation, gates[i] + (layer.gate_bias ? load(layer.gate_bias + neuron) : A(0)));
    else value = apply_rare_unary(layer.activation, value);
    hidden[static_cast<std::int64_t>(token) * layer.experts * layer.neurons + neuron] = convert<D>(value);
  }
}

/// Lists the experts that a row of the mask chooses, in order, by the first warp. Returns how many to all threads.
__device__ inline int list_chosen(const bool* mask, int experts, std::int32_t* list) {
  __shared__ int count;
  if (threadIdx.x < 32) {
    int before = 0;
    for (int first = 0; first < experts; first += 32) {
      const int expert = first + threadIdx.x;
      const bool chosen = expert < experts && mask[expert];
      const unsigned all = __ballot_sync(0xffffffffu, chosen);
      if (chosen) list[before + __popc(all & ((1u << threadIdx.x) - 1))] = expert;
      before += __popc(all);
    }
    if (threadIdx.x == 0) count = before;
  }
  __syncthreads();
  return count;
}

/// y [N, M]; a grid of (parts of M, N). Room for a list of all experts in dynamic shared memory.
template <int kValues, class D>
__global__ void __launch_bounds__(kBlock)
    sums_of_chosen(Layer<D> layer, const D* hidden, const bool* mask, int lanes, D* y) {
  extern __shared__ std::int32_t chosen[];
  const int token = blockIdx.y, column = (blockIdx.x * lanes + static_cast<int>(threadIdx.x) % lanes) * kValues;
  const int count = list_chosen(mask + token * layer.experts, layer.experts, chosen);
  const D* own = hidden + static_cast<std::int64_t>(token) * layer.experts * layer.neurons;
  compute_t<D> sums[kValues] = {};
  if (column < layer.outputs) {
#pragma unroll 4
    for (int i = threadIdx.x / lanes; i < count * layer.neurons; i += kBlock / lanes) {
      const int neuron = chosen[i / layer.neurons] * layer.neurons + i % layer.neurons;
      const auto values = *reinterpret_cast<const Vector<D, kValues>*>(
          layer.down + static_cast<std::int64_t>(neuron) * layer.outputs + column);
      const auto factor = load(own + neuron);
#pragma unroll
      for (int n = 0; n < kValues; ++n) sums[n] += factor * load(&values.values[n]);
    }
  }
  add_over_block(sums, lanes);
  if (threadIdx.x >= lanes || column >= layer.outputs) return;
  Vector<D, kValues> result;
  for (int n = 0; n < kValues; ++n) result.values[n] = convert<D>(sums[n]);
  *reinterpret_cast<Vector<D, kValues>*>(y + static_cast<std::int64_t>(token) * layer.outputs + column) = result;
}

/// A thread for kValues neighbours of a row of hidden [N, E S].
template <int kValues, class D>
__global__ void zero_others(const bool* mask, std::int64_t vectors, int experts, int neurons, D* hidden) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= vectors) return;
  const int per_row = experts * neurons / kValues, first = static_cast<int>(index % per_row) * kValues;
  const bool* row = mask + index / per_row * experts;
  bool kept[kValues], all = true, any = false;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    kept[i] = row[(first + i) / neurons];
    all &= kept[i];
    any |= kept[i];
  }
  if (all) return;
  auto* at = reinterpret_cast<Vector<D, kValues>*>(hidden) + index;
  Vector<D, kValues> values;
  if (any) values = *at;
#pragma unroll
  for (int i = 0; i < kValues; ++i)
    if (!kept[i]) values.values[i] = convert<D>(compute_t<D>(0));
  *at = values;
}

/// Calls f with the widest access, in elements of at most 16 bytes together, that divides rows of `width` elements.
template <class D, class F>
void with_access(std::int64_t width, F f) {
  constexpr int kWide = 16 / sizeof(D);
  if (width % kWide == 0) f(std::integral_constant<int, kWide>{});
  else if (width % (kWide / 2) == 0) f(std::integral_constant<int, kWide / 2>{});
  else if (kWide > 4 && width % 2 == 0) f(std::integral_constant<int, 2>{});
  else f(std::integral_constant<int, 1>{});
}

/// The smallest power of two that is at least `count`.
int power_of_two(int count) {
  int power = 1;
  while (power < count) power *= 2;
  return power;
}

}  // namespace

void decode_feed_forward(const Tensor& x, const ops::ExpertLayer& weights, const Tensor& mask,
                         ops::Activation activation, const Tensor& hidden, const Tensor& y) {
  const cudaStream_t stream = stream_of(x);
  const auto tokens = static_cast<unsigned>(x.size(0));
  dispatch_floating(x.dtype(), "masked_feed_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using D = device_t<T>;
    const Layer<D> layer{pointer<T>(weights.up),
                         pointer<T>(weights.up_bias),
                         pointer<T>(weights.gate),
                         pointer<T>(weights.gate_bias),
                         pointer<T>(weights.down),
                         static_cast<int>(weights.up.size(1)),
                         static_cast<int>(weights.up.size(0)),
                         static_cast<int>(weights.up.size(2)),
                         static_cast<int>(weights.down.size(2)),
                         activation};
    with_access<D>(layer.neurons, [&](auto access) {
      const int lanes = power_of_two((std::min(layer.neurons, kBlockNeurons) + access.value - 1) / access.value);
      const dim3 grid(blocks_for(layer.experts, 1), blocks_for(layer.neurons, kBlockNeurons), tokens);
      hidden_of_chosen<access.value>
          <<<grid, kBlock, 0, stream>>>(layer, pointer<T>(x), mask.data<bool>(), lanes, pointer<T>(hidden));
    });
    with_access<D>(layer.outputs, [&](auto access) {
      const int lanes = kBlockColumnBytes / static_cast<int>(sizeof(D)) / access.value;
      const dim3 grid(blocks_for(layer.outputs, lanes * access.value), tokens);
      const std::size_t list_bytes = sizeof(std::int32_t) * static_cast<std::size_t>(layer.experts);
      allow_shared_memory(sums_of_chosen<access.value, D>, list_bytes);
      sums_of_chosen<access.value>
          <<<grid, kBlock, list_bytes, stream>>>(layer, pointer<T>(hidden), mask.data<bool>(), lanes, pointer<T>(y));
    });
  });
  check_launch("masked_feed_forward");
}

void keep_chosen(const Tensor& hidden, const Tensor& mask) {
  dispatch_floating(hidden.dtype(), "masked_feed_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access<device_t<T>>(hidden.size(1), [&](auto access) {
      const std::int64_t vectors = hidden.numel() / access.value;
      const auto experts = static_cast<int>(mask.size(1)), neurons = static_cast<int>(hidden.size(1)) / experts;
      zero_others<access.value><<<blocks_for(vectors, kThreads), kThreads, 0, stream_of(hidden)>>>(
          mask.data<bool>(), vectors, experts, neurons, pointer<T>(hidden));
    });
  });
  check_launch("masked_feed_forward: mask");
}

}  // namespace switchyard::cuda
