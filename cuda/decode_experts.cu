// The experts of a few tokens, as in decoding. There is one row for each weight, so nothing is gained by sorting or by
// the tensor cores: what counts is that the chosen experts' weights, and no others, are read once, by all of the GPU at
// a time. Two launches, the second of which begins while the first still runs:
//   1. hidden: every block finds out by itself which experts its token runs, from a mask or from the router's last
//      product (computing that many times over costs less than another launch), and takes a part of their neurons, one
//      warp for each. What they give is listed, neuron by neuron.
//   2. sums: a block for each token and 32 bytes of columns; its threads share the list. Of neurons that give 0, as
//      most do behind a ReLU, the weights are not read.
// Every sum has a fixed order, so results do not vary.

#include <climits>

#include "core/kernels/decode_experts.h"
#include "core/ops/norm.h"
#include "cuda/access.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/dot.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"
#include "cuda/launch_early.cuh"

namespace switchyard::cuda {
namespace {

using ops::GateMode;

constexpr int kBlockThreads = 512, kWarps = kBlockThreads / 32;
constexpr int kScoreLanes = 8;  // threads that share a score: a router's rows are short
constexpr int kColumnBytes = 32;
constexpr int kAhead = 4;  // vectors of weights that a thread has on their way

template <class D>
struct Layer {
  const D *up, *up_bias, *gate, *gate_bias, *down;  // up, gate [E S, D], down [E S, M]; biases and gate may be null
  int width, experts, neurons, outputs;             // D, E, S, M
  ops::Activation activation;
};

/// The neurons of the chosen experts of each token, in order: the first counts[n] entries of row n of [N, E S].
template <class D>
struct Active {
  compute_t<D>* values;
  std::int32_t *neurons, *counts;
};

/// Lists, in order, the experts for which chosen(e), and returns how many, to all threads.
template <class Chosen>
__device__ inline int list_experts(int experts, std::int32_t* list, Chosen chosen) {
  __shared__ int counts[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int count = 0;
  for (int first = 0; first < experts; first += kBlockThreads) {
    const int expert = first + threadIdx.x;
    const bool is_chosen = expert < experts && chosen(expert);
    const unsigned all = __ballot_sync(0xffffffffu, is_chosen);
    if (lane == 0) counts[warp] = __popc(all);
    __syncthreads();
    int before = count;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += counts[w];
      count += counts[w];
    }
    if (is_chosen) list[before + __popc(all & ((1u << lane) - 1))] = expert;
    __syncthreads();
  }
  return count;
}

/// Choice by a mask [N, E].
struct ByMask {
  const bool* mask;

  template <int kValues>
  __device__ void fetch(int) const {}
  template <int kValues>
  __device__ int list(int token, int experts, void*, std::int32_t* list) const {
    return list_experts(experts, list, [&](int expert) { return mask[token * experts + expert]; });
  }
};

/// A whole number that grows with the score: the same for 0 and -0, the least for NaN.
__device__ inline int order_of(float score) {
  const int bits = __float_as_int(score + 0.0f);  // which is 0 for -0
  return score != score ? INT_MIN : bits ^ (bits >> 31 & INT_MAX);
}
__device__ inline long long order_of(double score) {
  const long long bits = __double_as_longlong(score + 0.0);
  return score != score ? LLONG_MIN : bits ^ (bits >> 63 & LLONG_MAX);
}

/// Choice by scores: activation(hidden weight^T + bias) under a rule of ops::Gate.
template <class D>
struct ByScores {
  using A = compute_t<D>;
  const D *hidden, *weight, *bias;  // [N, H], [E, H], [E] or null
  int width;                        // H
  ops::Activation activation;
  GateMode mode;
  A limit;  // topk: k, dynk: tau, dynk_max: 1 - tau

  /// Has the weights fetched, each block a part of them.
  template <int kValues>
  __device__ void fetch(int experts) const {
    if constexpr (kValues > 1)
      for (int row = blockIdx.x + threadIdx.x * gridDim.x; row < experts; row += gridDim.x * kBlockThreads)
        prefetch(weight + static_cast<std::int64_t>(row) * width, width);
  }

  template <int kValues>
  __device__ void compute(int token, int experts, A* scores) const {
    constexpr int kTogether = 4, kApart = kBlockThreads / kScoreLanes;  // experts that a group of threads works on
    const D* row = hidden + static_cast<std::int64_t>(token) * width;
    for (int first = 0; first < experts; first += kTogether * kApart) {
      const int expert = first + static_cast<int>(threadIdx.x) / kScoreLanes;
      const int count = expert < experts ? (experts - expert + kApart - 1) / kApart : 0;
      A sums[kTogether];
      dots<kTogether, kScoreLanes, kValues, 2>(row, weight + static_cast<std::int64_t>(expert) * width,
                                               static_cast<std::int64_t>(kApart) * width, count, width, sums);
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (i < count && threadIdx.x % kScoreLanes == i % kScoreLanes) {
          const int own = expert + i * kApart;
          scores[own] = apply_rare_unary(activation, bias ? sums[i] + load(bias + own) : sums[i]);
        }
    }
    __syncthreads();
  }

  /// The k best, as ops::top_k ranks them; leaves numbers that order like the scores in their place.
  __device__ int list_best(int experts, A* scores, std::int32_t* list) const {
    using Order = decltype(order_of(A{}));
    static_assert(sizeof(Order) == sizeof(A));
    Order* orders = reinterpret_cast<Order*>(scores);
    for (int expert = threadIdx.x; expert < experts; expert += kBlockThreads) orders[expert] = order_of(scores[expert]);
    __syncthreads();
    return list_experts(experts, list, [&](int expert) {
      const Order own = orders[expert];
      int before = 0;
      for (int other = 0; other < experts; ++other) before += orders[other] + (other < expert) > own;
      return before < limit;
    });
  }

  template <int kValues>
  __device__ int list(int token, int experts, void* room, std::int32_t* list) const {
    __shared__ A scratch[32];
    A* scores = static_cast<A*>(room);
    compute<kValues>(token, experts, scores);
    if (mode == GateMode::topk) return list_best(experts, scores, list);
    A largest = scores[0], total = 0;
    for (int expert = threadIdx.x; expert < experts; expert += kBlockThreads) {
      largest = Max{}(largest, scores[expert]);
      total += scores[expert];
    }
    if (mode == GateMode::dynk_max) {
      largest = block_reduce(largest, Max{}, largest, scratch);
      const A least = largest < 0 ? largest : limit * largest;  // NaN where a score is: then none is below it
      return list_experts(experts, list, [&](int expert) { return !(scores[expert] < least); });
    }
    total = block_reduce(total, Add{}, A(0), scratch);
    return list_experts(experts, list, [&](int expert) {
      const A own = scores[expert];
      A before = 0;  // the share of better experts
      bool first = true;
      for (int other = 0; other < experts; ++other) {
        if (!(scores[other] > own || (scores[other] == own && other < expert))) continue;
        before += scores[other] / total;
        first = false;
      }
      return first || !(before >= limit);
    });
  }
};

/// A grid of (blocks that share a token's neurons, N). Room for a score and a number for each expert in dynamic shared
/// memory.
template <int kValues, class Choice, class D>
__global__ void __launch_bounds__(kBlockThreads, 2)
    hidden_of_chosen(Layer<D> layer, Choice choice, const D* x, Active<D> active) {
  using A = compute_t<D>;
  extern __shared__ __align__(8) unsigned char room[];
  auto* experts = reinterpret_cast<std::int32_t*>(room + layer.experts * sizeof(A));
  let_next_begin();
  choice.template fetch<kValues>(layer.experts);
  wait_for_previous();
  const int token = blockIdx.y;
  const int count = choice.template list<kValues>(token, layer.experts, room, experts) * layer.neurons;
  if (blockIdx.x == 0 && threadIdx.x == 0) active.counts[token] = count;
  const D* row = x + static_cast<std::int64_t>(token) * layer.width;
  const std::int64_t first = static_cast<std::int64_t>(token) * layer.experts * layer.neurons;
  for (int i = threadIdx.x / 32 * gridDim.x + blockIdx.x; i < count; i += gridDim.x * kWarps) {
    const int neuron = experts[i / layer.neurons] * layer.neurons + i % layer.neurons;
    const std::int64_t weight = static_cast<std::int64_t>(neuron) * layer.width;
    A value = dot<32, kValues, kAhead>(row, layer.up + weight, layer.width);
    if (layer.up_bias) value += load(layer.up_bias + neuron);
    if (layer.gate) {
      A gate = dot<32, kValues, kAhead>(row, layer.gate + weight, layer.width);
      if (layer.gate_bias) gate += load(layer.gate_bias + neuron);
      value *= apply_rare_unary(layer.activation, gate);
    } else {
      value = apply_rare_unary(layer.activation, value);
    }
    if (threadIdx.x % 32 != 0) continue;
    active.values[first + i] = value;
    active.neurons[first + i] = neuron;
  }
}

/// Adds up the sums of all threads with the same threadIdx.x % kLanes, a power of two. Thread t < kLanes kValues gets
/// the sum number t % kValues of threads t / kValues.
template <int kLanes, int kValues, class A>
__device__ inline A add_over_block(A (&sums)[kValues]) {
  __shared__ A parts[kWarps][kLanes * kValues];
  const int lane = threadIdx.x % 32;
  int distance = 16, value = 0;
#pragma unroll
  for (int half = kValues / 2; half > 0; half /= 2, distance /= 2) {  // two threads share what is left of their sums
    const bool upper = (lane & distance) != 0;
    if (upper) value += half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A given = upper ? sums[i] : sums[i + half], kept = upper ? sums[i + half] : sums[i];
      sums[i] = kept + __shfl_xor_sync(0xffffffffu, given, distance);
    }
  }
#pragma unroll
  for (; distance >= kLanes; distance /= 2) sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], distance);
  parts[threadIdx.x / 32][lane % kLanes * kValues + value] = sums[0];
  __syncthreads();
  A sum = 0;
  if (threadIdx.x < kLanes * kValues)
    for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp][threadIdx.x];
  return sum;
}

/// y [N, M]; a grid of (parts of M, N). last_bias and addend may be null.
template <int kValues, class D>
__global__ void __launch_bounds__(kBlockThreads, 2)
    sums_of_active(Layer<D> layer, Active<D> active, const D* last_bias, const D* addend, D* y) {
  using A = compute_t<D>;
  constexpr int kLanes = kColumnBytes / static_cast<int>(sizeof(D)) / kValues;
  let_next_begin();
  wait_for_previous();
  const int token = blockIdx.y, first = blockIdx.x * kLanes * kValues;
  const int column = first + static_cast<int>(threadIdx.x) % kLanes * kValues;
  const std::int64_t room = static_cast<std::int64_t>(token) * layer.experts * layer.neurons;
  const A* values = active.values + room;
  const std::int32_t* neurons = active.neurons + room;
  const int count = active.counts[token];
  constexpr int kStep = kBlockThreads / kLanes;
  A sums[kValues] = {};
  for (int i = threadIdx.x / kLanes; column < layer.outputs && i < count; i += kAhead * kStep) {
    A factors[kAhead];
    const D* rows[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const int entry = min(i + n * kStep, count - 1);
      factors[n] = i + n * kStep < count ? values[entry] : A(0);
      rows[n] = layer.down + static_cast<std::int64_t>(neurons[entry]) * layer.outputs + column;
    }
    Packed<D, kValues> weights[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n)
      if (factors[n] != A(0)) weights[n].read(rows[n]);
#pragma unroll
    for (int n = 0; n < kAhead; ++n)
#pragma unroll
      for (int v = 0; v < kValues; ++v)
        if (factors[n] != A(0)) sums[v] += factors[n] * weights[n][v];
  }
  A sum = add_over_block<kLanes>(sums);
  const int at = first + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= kLanes * kValues || at >= layer.outputs) return;
  if (last_bias) sum += load(last_bias + at);
  const std::int64_t entry = static_cast<std::int64_t>(token) * layer.outputs + at;
  if (addend) sum += load(addend + entry);
  y[entry] = convert<D>(sum);
}

/// The two launches. `wide`: whether the rows that `choice` reads can be moved in pieces of 16 bytes.
template <class T, class Choice>
void decode(const Tensor& x, const ops::ExpertLayer& weights, const Choice& choice, bool wide,
            ops::Activation activation, const Tensor& last_bias, const Tensor& addend, const Tensor& y) {
  using D = device_t<T>;
  const Context& ctx = context(x.device());
  const std::int64_t tokens = x.size(0), experts = weights.up.size(0), neurons = experts * weights.up.size(2);
  const Layer<D> layer{pointer<T>(weights.up),
                       pointer<T>(weights.up_bias),
                       pointer<T>(weights.gate),
                       pointer<T>(weights.gate_bias),
                       pointer<T>(weights.down),
                       static_cast<int>(weights.up.size(1)),
                       static_cast<int>(experts),
                       static_cast<int>(weights.up.size(2)),
                       static_cast<int>(weights.down.size(2)),
                       activation};
  using A = compute_t<D>;
  const Tensor values = Tensor::empty({tokens, neurons}, ops::compute_dtype(x.dtype()), x.device());
  const Tensor listed = Tensor::empty({tokens, neurons}, DType::i32, x.device());
  const Tensor counts = Tensor::empty({tokens}, DType::i32, x.device());
  const Active<D> active{values.data<A>(), listed.data<std::int32_t>(), counts.data<std::int32_t>()};
  with_access<D, 16>(wide ? layer.width : 1, {&x, &weights.up, &weights.gate}, [&](auto access) {
    const auto kernel = hidden_of_chosen<access.value, Choice, D>;
    const std::size_t bytes = static_cast<std::size_t>(experts) * (sizeof(A) + sizeof(std::int32_t));
    const std::int64_t parts = std::clamp<std::int64_t>((neurons + kWarps - 1) / kWarps, 1, ctx.multiprocessors);
    allow_shared_memory(kernel, bytes);
    launch_early(kernel, dim3(static_cast<unsigned>(parts), static_cast<unsigned>(tokens)), kBlockThreads, bytes, ctx,
                 layer, choice, pointer<T>(x), active);
  });
  with_access<D, 16>(layer.outputs, {&weights.down}, [&](auto access) {
    const dim3 grid(blocks_for(layer.outputs, kColumnBytes / sizeof(D)), static_cast<unsigned>(tokens));
    launch_early(sums_of_active<access.value, D>, grid, kBlockThreads, 0, ctx, layer, active, pointer<T>(last_bias),
                 pointer<T>(addend), pointer<T>(y));
  });
}

}  // namespace

void decode_masked(const Tensor& x, const ops::ExpertLayer& layer, const Tensor& mask, ops::Activation activation,
                   const Tensor& y) {
  dispatch_floating(x.dtype(), "masked_feed_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    decode<T>(x, layer, ByMask{mask.data<bool>()}, true, activation, {}, {}, y);
  });
}

void decode_routed(const Tensor& x, const ops::ExpertLayer& layer, const ops::ExpertRouter& router,
                   ops::Activation activation, const Tensor& last_bias, const Tensor& addend, const Tensor& y) {
  const ops::Gate& gate = router.gate;
  const double limit = gate.mode == GateMode::topk   ? static_cast<double>(gate.k)
                       : gate.mode == GateMode::dynk ? gate.tau
                                                     : 1 - gate.tau;
  dispatch_floating(x.dtype(), "routed_feed_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using D = device_t<T>;
    const ByScores<D> choice{pointer<T>(router.hidden),
                             pointer<T>(router.weight),
                             pointer<T>(router.bias),
                             static_cast<int>(router.weight.size(1)),
                             router.activation,
                             gate.mode,
                             static_cast<compute_t<D>>(limit)};
    const bool wide =
        divides_rows(16, router.weight.size(1) * std::int64_t{sizeof(D)}, {&router.hidden, &router.weight});
    decode<T>(x, layer, choice, wide, activation, last_bias, addend, y);
  });
}

}  // namespace switchyard::cuda
