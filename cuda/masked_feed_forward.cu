// The experts of a mask for a few tokens, as in decoding. There is one row for each weight, so nothing is gained by
// sorting or by the tensor cores: what counts is that the chosen experts' weights, and no others, are read once, by
// many blocks at a time, in vectors of up to 16 bytes. Two launches:
//   1. hidden: a block for each token, expert and 16 neurons; its threads share the rows of the weight.
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

constexpr int kMostThreads = 512, kMostWarps = kMostThreads / 32, kBlockNeurons = 16;
constexpr int kBlockColumnBytes = 32;

template <class D>
struct Layer {
  const D *up, *up_bias, *gate, *gate_bias, *down;  // biases and gate may be null
  int width, experts, neurons, outputs;             // D, E, S, M
  ops::Activation activation;
};

/// Adds up the sums of all threads with the same threadIdx.x % lanes, a power of two up to 32. Thread t < lanes *
/// kValues gets the sum number t % kValues of threads t / kValues.
template <int kValues, class A>
__device__ inline A add_over_block(A (&sums)[kValues], int lanes) {
  __shared__ A parts[kMostWarps][32 * kValues];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < kValues; ++i)
    for (int distance = 16; distance >= lanes; distance /= 2)
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], distance);
#pragma unroll
  for (int i = 0; i < kValues; ++i)
    if (lane < lanes) parts[warp][lane * kValues + i] = sums[i];
  __syncthreads();
  A sum = 0;
  if (threadIdx.x < lanes * kValues)
    for (int other = 0; other < blockDim.x / 32; ++other) sum += parts[other][threadIdx.x];
  __syncthreads();
  return sum;
}

/// x . one column of weight [width, neurons]: column first + t in thread t, for the columns that the block has.
template <int kValues, class D>
__device__ inline compute_t<D> dot_columns(const D* x, const D* weight, int width, int neurons, int first, int lanes) {
  compute_t<D> sums[kValues] = {};
  const int column = static_cast<int>(threadIdx.x) % lanes * kValues;
  if (column < kBlockNeurons && first + column < neurons) {
#pragma unroll 4
    for (int row = threadIdx.x / lanes; row < width; row += blockDim.x / lanes) {
      const auto values = *reinterpret_cast<const Vector<D, kValues>*>(weight + row * neurons + first + column);
      const auto factor = load(x + row);
#pragma unroll
      for (int i = 0; i < kValues; ++i) sums[i] += factor * load(&values.values[i]);
    }
  }
  return add_over_block(sums, lanes);
}

/// hidden [N, E S], for chosen experts; a grid of (E, parts of S, N).
template <int kValues, class D>
__global__ void __launch_bounds__(kMostThreads)
    hidden_of_chosen(Layer<D> layer, const D* x, const bool* mask, int lanes, D* hidden) {
  using A = compute_t<D>;
  const int expert = blockIdx.x, token = blockIdx.z, first = blockIdx.y * kBlockNeurons;
  if (!mask[token * layer.experts + expert]) return;
  const std::int64_t weight = static_cast<std::int64_t>(expert) * layer.width * layer.neurons;
  const D* row = x + static_cast<std::int64_t>(token) * layer.width;
  const bool owner = threadIdx.x < kBlockNeurons && first + static_cast<int>(threadIdx.x) < layer.neurons;
  const int neuron = expert * layer.neurons + first + threadIdx.x;
  const A bias = owner && layer.up_bias ? load(layer.up_bias + neuron) : A(0);
  const A gate_bias = owner && layer.gate_bias ? load(layer.gate_bias + neuron) : A(0);
  const A up = bias + dot_columns<kValues>(row, layer.up + weight, layer.width, layer.neurons, first, lanes);
  A value;
  if (layer.gate) {
    const A gate = dot_columns<kValues>(row, layer.gate + weight, layer.width, layer.neurons, first, lanes);
    value = apply_rare_unary(layer.activation, gate + gate_bias) * up;
  } else {
    value = apply_rare_unary(layer.activation, up);
  }
  if (owner) hidden[static_cast<std::int64_t>(token) * layer.experts * layer.neurons + neuron] = convert<D>(value);
}

/// Lists the experts that a row of the mask chooses, in order, and returns how many, to all threads.
__device__ inline int list_chosen(const bool* mask, int experts, std::int32_t* list) {
  __shared__ int counts[kMostWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int count = 0;
  for (int first = 0; first < experts; first += blockDim.x) {
    const int expert = first + threadIdx.x;
    const bool chosen = expert < experts && mask[expert];
    const unsigned all = __ballot_sync(0xffffffffu, chosen);
    if (lane == 0) counts[warp] = __popc(all);
    __syncthreads();
    int before = count;
    for (int w = 0; w < warps; ++w) {
      if (w < warp) before += counts[w];
      count += counts[w];
    }
    if (chosen) list[before + __popc(all & ((1u << lane) - 1))] = expert;
    __syncthreads();
  }
  return count;
}

/// y [N, M]; a grid of (parts of M, N). Room for a list of all experts in dynamic shared memory.
template <int kValues, class D>
__global__ void __launch_bounds__(kMostThreads)
    sums_of_chosen(Layer<D> layer, const D* hidden, const bool* mask, int lanes, D* y) {
  extern __shared__ std::int32_t chosen[];
  const int token = blockIdx.y, first = blockIdx.x * lanes * kValues;
  const int column = first + static_cast<int>(threadIdx.x) % lanes * kValues;
  const int count = list_chosen(mask + token * layer.experts, layer.experts, chosen);
  const D* own = hidden + static_cast<std::int64_t>(token) * layer.experts * layer.neurons;
  compute_t<D> sums[kValues] = {};
  if (column < layer.outputs) {
#pragma unroll 4
    for (int i = threadIdx.x / lanes; i < count * layer.neurons; i += blockDim.x / lanes) {
      const int neuron = chosen[i / layer.neurons] * layer.neurons + i % layer.neurons;
      const auto values = *reinterpret_cast<const Vector<D, kValues>*>(
          layer.down + static_cast<std::int64_t>(neuron) * layer.outputs + column);
      const auto factor = load(own + neuron);
#pragma unroll
      for (int n = 0; n < kValues; ++n) sums[n] += factor * load(&values.values[n]);
    }
  }
  const auto sum = add_over_block(sums, lanes);
  const int at = first + static_cast<int>(threadIdx.x);
  if (threadIdx.x < lanes * kValues && at < layer.outputs)
    y[static_cast<std::int64_t>(token) * layer.outputs + at] = convert<D>(sum);
}

/// A block for a row of hidden [N, E S]; each thread takes kValues neighbours at a time.
template <int kValues, class D>
__global__ void zero_others(const bool* mask, int experts, int neurons, D* hidden) {
  const bool* row = mask + static_cast<std::int64_t>(blockIdx.x) * experts;
  D* own = hidden + static_cast<std::int64_t>(blockIdx.x) * experts * neurons;
  for (int first = threadIdx.x * kValues; first < experts * neurons; first += blockDim.x * kValues) {
    int expert = first / neurons, rest = neurons - (first - expert * neurons);  // neurons of this expert still to come
    bool kept[kValues], all = true, any = false;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      if (rest-- == 0) ++expert, rest = neurons - 1;
      kept[i] = row[expert];
      all &= kept[i];
      any |= kept[i];
    }
    if (all) continue;
    auto* at = reinterpret_cast<Vector<D, kValues>*>(own + first);
    Vector<D, kValues> values;
    if (any) values = *at;
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      if (!kept[i]) values.values[i] = convert<D>(compute_t<D>(0));
    *at = values;
  }
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

/// Threads of a block that reads `vectors`, about four each.
int threads_for(int vectors) { return std::clamp(vectors / 4 / 32 * 32, 64, kMostThreads); }

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
      hidden_of_chosen<access.value><<<grid, threads_for(layer.width * lanes), 0, stream>>>(
          layer, pointer<T>(x), mask.data<bool>(), lanes, pointer<T>(hidden));
    });
    with_access<D>(layer.outputs, [&](auto access) {
      const int lanes = kBlockColumnBytes / static_cast<int>(sizeof(D)) / access.value;
      const dim3 grid(blocks_for(layer.outputs, lanes * access.value), tokens);
      const std::size_t list_bytes = sizeof(std::int32_t) * static_cast<std::size_t>(layer.experts);
      allow_shared_memory(sums_of_chosen<access.value, D>, list_bytes);
      sums_of_chosen<access.value><<<grid, kMostThreads, list_bytes, stream>>>(layer, pointer<T>(hidden),
                                                                               mask.data<bool>(), lanes, pointer<T>(y));
    });
  });
  check_launch("masked_feed_forward");
}

void keep_chosen(const Tensor& hidden, const Tensor& mask) {
  dispatch_floating(hidden.dtype(), "masked_feed_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access<device_t<T>>(hidden.size(1), [&](auto access) {
      const auto experts = static_cast<int>(mask.size(1)), neurons = static_cast<int>(hidden.size(1)) / experts;
      zero_others<access.value><<<blocks_for(hidden.size(0), 1), kThreads, 0, stream_of(hidden)>>>(
          mask.data<bool>(), experts, neurons, pointer<T>(hidden));
    });
  });
  check_launch("masked_feed_forward: mask");
}

}  // namespace switchyard::cuda
