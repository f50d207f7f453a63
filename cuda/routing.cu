// Choosing experts: the k best of a row of scores, the gates that their scores give, and how evenly experts are wanted.
// Rows are short: as many lanes of a warp share a row as it takes.

#include "core/kernels/routing.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

using ops::GateFunction;

constexpr int kPerLane = 8;  // experts of a row that a lane holds in registers

/// A score and its expert as one number, the larger the better; 0 is none. From the highest bit: whether the expert is
/// not excluded; the bits of the score in an order that follows its value, 0 for NaN; the expert, the lower the better.
template <class A>
struct Candidate;
template <>
struct Candidate<float> {
  using Key = std::uint64_t;
  static constexpr int kBits = 32;
  __device__ static std::uint32_t bits(float score) { return __float_as_uint(score); }
};
template <>
struct Candidate<double> {
  using Key = unsigned __int128;
  static constexpr int kBits = 64;
  __device__ static std::uint64_t bits(double score) { return static_cast<std::uint64_t>(__double_as_longlong(score)); }
};
template <class A>
using Key = typename Candidate<A>::Key;

constexpr int kExpertBits = 31;

template <class A>
__device__ Key<A> key_of(A score, bool excluded, int expert) {
  auto bits = Candidate<A>::bits(score + A(0));  // -0 becomes 0
  const bool negative = bits >> (Candidate<A>::kBits - 1);
  bits = score != score ? 0 : negative ? ~bits : bits | decltype(bits){1} << (Candidate<A>::kBits - 1);
  const Key<A> high = Key<A>(!excluded) << Candidate<A>::kBits | bits;
  return high << kExpertBits | ((std::uint32_t{1} << kExpertBits) - 1 - expert);
}

template <class K>
__device__ int expert_of(K key) {
  constexpr std::uint32_t kAll = (std::uint32_t{1} << kExpertBits) - 1;
  return static_cast<int>(kAll - (static_cast<std::uint32_t>(key) & kAll));
}

__device__ inline std::uint64_t shuffle_xor(std::uint64_t value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}
__device__ inline unsigned __int128 shuffle_xor(unsigned __int128 value, int distance) {
  const std::uint64_t high = shuffle_xor(static_cast<std::uint64_t>(value >> 64), distance);
  return static_cast<unsigned __int128>(high) << 64 | shuffle_xor(static_cast<std::uint64_t>(value), distance);
}

/// The largest key of the `lanes` lanes (a power of two) that share a row.
template <class K>
__device__ K best_of_lanes(K key, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    const K other = shuffle_xor(key, distance);
    if (other > key) key = other;
  }
  return key;
}

/// Rows of at most kPerLane * lanes experts, in registers.
template <class D>
__global__ void top_k_rows(const D* scores, const bool* excluded, std::int64_t rows, int experts, int lanes, int k,
                           std::int32_t* indices) {
  using K = Key<compute_t<D>>;
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  K keys[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane + i * lanes;
    const std::int64_t at = row * experts + expert;
    keys[i] = row < rows && expert < experts ? key_of(load(scores + at), excluded && excluded[at], expert) : K(0);
  }
  for (int j = 0; j < k; ++j) {
    K best = keys[0];
#pragma unroll
    for (int i = 1; i < kPerLane; ++i) best = keys[i] > best ? keys[i] : best;
    best = best_of_lanes(best, lanes);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) keys[i] = keys[i] == best ? K(0) : keys[i];
    if (lane == 0 && row < rows) indices[row * k + j] = expert_of(best);
  }
}

/// Rows of any length: a warp each. Round j takes the best that is worse than what round j - 1 took.
template <class D>
__global__ void top_k_long_rows(const D* scores, const bool* excluded, std::int64_t rows, int experts, int k,
                                std::int32_t* indices) {
  using K = Key<compute_t<D>>;
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (row >= rows) return;
  K last = ~K(0);
  for (int j = 0; j < k; ++j) {
    K best = 0;
    for (int expert = threadIdx.x % 32; expert < experts; expert += 32) {
      const std::int64_t at = row * experts + expert;
      const K key = key_of(load(scores + at), excluded && excluded[at], expert);
      if (key < last && key > best) best = key;
    }
    last = best_of_lanes(best, 32);
    if (threadIdx.x % 32 == 0) indices[row * k + j] = expert_of(last);
  }
}

/// One row as the lanes that share it see it.
template <class A>
struct RowGates {
  GateFunction function;
  const A* scores;             // [experts]
  const std::int32_t* chosen;  // [k]
  int experts, k, lane, lanes;
  A maximum = 0, inverse_sum = 1;

  template <class Op>
  __device__ A reduce(A value, Op op) const {
    for (int distance = lanes / 2; distance > 0; distance /= 2)
      value = op(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
  }

  /// What a softmax divides by.
  __device__ void normalize() {
    if (function == GateFunction::sigmoid) return;
    const bool of_all = function == GateFunction::softmax;
    const int count = of_all ? experts : k;
    maximum = -A(INFINITY);
    for (int i = lane; i < count; i += lanes) maximum = Max{}(maximum, scores[of_all ? i : chosen[i]]);
    maximum = reduce(maximum, Max{});
    A sum = 0;
    for (int i = lane; i < count; i += lanes) sum += exp(scores[of_all ? i : chosen[i]] - maximum);
    inverse_sum = 1 / reduce(sum, Add{});
  }

  __device__ A gate(int expert) const {
    return function == GateFunction::sigmoid ? sigmoid(scores[expert]) : exp(scores[expert] - maximum) * inverse_sum;
  }
};

template <class A>
__device__ RowGates<A> row_gates(GateFunction function, const A* scores, const std::int32_t* indices, std::int64_t row,
                                 int experts, int k, int lanes) {
  RowGates<A> gates{
      function, scores + row * experts, indices + row * k, experts, k, static_cast<int>(threadIdx.x) % lanes, lanes};
  gates.normalize();
  return gates;
}

template <class A, class D>
__global__ void gates_of_rows(GateFunction function, const A* scores, const std::int32_t* indices, std::int64_t rows,
                              int experts, int k, int lanes, D* gates) {
  const std::int64_t own = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  const std::int64_t row = min(own, rows - 1);  // lanes without a row still take part in sums
  const RowGates<A> of_row = row_gates(function, scores, indices, row, experts, k, lanes);
  if (own != row) return;
  for (int j = of_row.lane; j < k; j += lanes) gates[row * k + j] = convert<D>(of_row.gate(of_row.chosen[j]));
}

/// sigmoid: ds = dg g (1 - g). softmax: ds = g (dg - sum of dg g), with dg = 0 for experts not chosen.
template <class A, class D>
__global__ void gate_gradients_of_rows(GateFunction function, const D* dgates, const A* scores,
                                       const std::int32_t* indices, std::int64_t rows, int experts, int k, int lanes,
                                       A* dscores) {
  const std::int64_t own = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  const std::int64_t row = min(own, rows - 1);
  const RowGates<A> of_row = row_gates(function, scores, indices, row, experts, k, lanes);
  const D* dgate = dgates + row * k;
  A dot = 0;
  if (function != GateFunction::sigmoid) {
    for (int j = of_row.lane; j < k; j += lanes) dot += load(dgate + j) * of_row.gate(of_row.chosen[j]);
    dot = of_row.reduce(dot, Add{});
  }
  if (own != row) return;
  for (int expert = of_row.lane; expert < experts; expert += lanes) {
    A sum = 0;
    int times = 0;
    for (int j = 0; j < k; ++j) {
      if (of_row.chosen[j] != expert) continue;
      sum += load(dgate + j);
      ++times;
    }
    A result = 0;
    if (function == GateFunction::softmax || times > 0) {
      const A gate = of_row.gate(expert);
      if (function == GateFunction::sigmoid) result = sum * gate * (1 - gate);
      else result = gate * (sum - (function == GateFunction::softmax ? 1 : times) * dot);
    }
    dscores[row * experts + expert] = result;
  }
}

/// parts[group, slot, e] = sum over the group's tokens of softmax(scores)[e]: tokens group, group + groups, ...
template <class A>
__global__ void selection_parts(const A* scores, std::int64_t tokens, int slots, int experts, int lanes, int groups,
                                A* parts) {
  const int own = (blockIdx.x * blockDim.x + threadIdx.x) / lanes, row = min(own, groups * slots - 1);
  const int slot = row % slots, group = row / slots, lane = threadIdx.x % lanes;
  for (int first = 0; first < experts; first += lanes * kPerLane) {
    A sums[kPerLane] = {};
    for (std::int64_t token = 0; token < tokens; token += groups) {  // as often for all lanes of a warp
      const bool mine = token + group < tokens;
      const std::int64_t at = min(token + group, tokens - 1) * slots + slot;
      const RowGates<A> of_row = row_gates<A>(GateFunction::softmax, scores, nullptr, at, experts, 0, lanes);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int expert = first + lane + i * lanes;
        if (mine && expert < experts) sums[i] += of_row.gate(expert);
      }
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = first + lane + i * lanes;
      if (own == row && expert < experts) parts[static_cast<std::int64_t>(row) * experts + expert] = sums[i];
    }
  }
}

/// A warp per expert and slot adds up its parts: the mean m, and m log m / slots.
template <class A>
__global__ void selection_means(const A* parts, std::int64_t tokens, int slots, int width, int groups, A* mean,
                                A* terms) {
  A sum = 0;
  for (int group = threadIdx.x; group < groups; group += 32) sum += parts[group * width + blockIdx.x];
  const A m = warp_reduce(sum, Add{}) / static_cast<A>(tokens);
  if (threadIdx.x > 0) return;
  mean[blockIdx.x] = m;
  terms[blockIdx.x] = m > 0 ? m * log(m) / static_cast<A>(slots) : A(0);
}

/// ds_e = p_e (c_e - sum of p c) / N, with p = softmax(s) and c_e = (log m_e + 1) / H times the value's gradient.
template <class A>
__global__ void selection_gradients(const A* dvalue, const A* scores, const A* mean, std::int64_t tokens, int slots,
                                    int experts, int lanes, A* dscores) {
  const std::int64_t own = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  const std::int64_t row = min(own, tokens * slots - 1);
  const RowGates<A> of_row = row_gates<A>(GateFunction::softmax, scores, nullptr, row, experts, 0, lanes);
  const A scale = *dvalue / static_cast<A>(tokens * slots);
  const auto coefficient = [&](int expert) {
    const A m = mean[row % slots * experts + expert];
    return m > 0 ? scale * (log(m) + 1) : A(0);
  };
  A dot = 0;
  for (int e = of_row.lane; e < experts; e += lanes) dot += of_row.gate(e) * coefficient(e);
  dot = of_row.reduce(dot, Add{});
  if (own != row) return;
  for (int e = of_row.lane; e < experts; e += lanes)
    dscores[row * experts + e] = of_row.gate(e) * (coefficient(e) - dot);
}

/// The power of two of lanes that a row of `experts` takes, `per_lane` of them each; at most 32.
int lanes_for(std::int64_t experts, int per_lane) {
  int lanes = 1;
  while (lanes < 32 && lanes * per_lane < experts) lanes *= 2;
  return lanes;
}

}  // namespace

void top_k(const Tensor& scores, const Tensor& excluded, const Tensor& indices) {
  const std::int64_t rows = scores.size(0);
  const int experts = static_cast<int>(scores.size(1)), k = static_cast<int>(indices.size(1));
  const bool* skip = excluded.defined() ? excluded.data<bool>() : nullptr;
  auto* out = indices.data<std::int32_t>();
  const cudaStream_t stream = stream_of(scores);
  dispatch_floating(scores.dtype(), "top_k", [&](auto tag) {
    const auto* in = pointer<typename decltype(tag)::type>(scores);
    const int lanes = lanes_for(experts, kPerLane);
    const unsigned blocks = blocks_for(rows * lanes, kThreads);
    if (experts <= kPerLane * lanes)
      top_k_rows<<<blocks, kThreads, 0, stream>>>(in, skip, rows, experts, lanes, k, out);
    else top_k_long_rows<<<blocks, kThreads, 0, stream>>>(in, skip, rows, experts, k, out);
  });
  check_launch("top_k");
}

void expert_gates(const Tensor& scores, const Tensor& indices, GateFunction function, const Tensor& gates) {
  const std::int64_t rows = scores.size(0);
  const int experts = static_cast<int>(scores.size(1)), k = static_cast<int>(indices.size(1));
  const int lanes = lanes_for(k, 1);
  dispatch_floating(gates.dtype(), "expert_gates", [&](auto tag) {
    using T = typename decltype(tag)::type;
    gates_of_rows<<<blocks_for(rows * lanes, kThreads), kThreads, 0, stream_of(scores)>>>(
        function, pointer<compute_t<device_t<T>>>(scores), indices.data<std::int32_t>(), rows, experts, k, lanes,
        pointer<T>(gates));
  });
  check_launch("expert_gates");
}

void expert_gates_backward(const Tensor& dgates, const Tensor& scores, const Tensor& indices, GateFunction function,
                           const Tensor& dscores) {
  const std::int64_t rows = scores.size(0);
  const int experts = static_cast<int>(scores.size(1)), k = static_cast<int>(indices.size(1));
  const int lanes = lanes_for(experts, 1);
  dispatch_floating(dgates.dtype(), "expert_gates_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = compute_t<device_t<T>>;
    gate_gradients_of_rows<<<blocks_for(rows * lanes, kThreads), kThreads, 0, stream_of(scores)>>>(
        function, pointer<T>(dgates), pointer<A>(scores), indices.data<std::int32_t>(), rows, experts, k, lanes,
        pointer<A>(dscores));
  });
  check_launch("expert_gates_backward");
}

void mean_selection(const Tensor& scores, const Tensor& mean, const Tensor& terms) {
  const std::int64_t tokens = scores.size(0);
  const int slots = static_cast<int>(scores.size(1)), experts = static_cast<int>(scores.size(2));
  const int lanes = lanes_for(experts, kPerLane), groups = static_cast<int>(std::min<std::int64_t>(tokens, 1024));
  const Tensor parts = Tensor::empty({groups, slots, experts}, scores.dtype(), scores.device());
  const cudaStream_t stream = stream_of(scores);
  dispatch_floating(scores.dtype(), "mean_selection", [&](auto tag) {
    using A = compute_t<device_t<typename decltype(tag)::type>>;
    selection_parts<<<blocks_for(std::int64_t{groups} * slots * lanes, kThreads), kThreads, 0, stream>>>(
        pointer<A>(scores), tokens, slots, experts, lanes, groups, pointer<A>(parts));
    selection_means<<<blocks_for(mean.numel(), 1), 32, 0, stream>>>(pointer<A>(parts), tokens, slots, slots * experts,
                                                                    groups, pointer<A>(mean), pointer<A>(terms));
  });
  check_launch("mean_selection");
}

void mean_selection_backward(const Tensor& dvalue, const Tensor& scores, const Tensor& mean, const Tensor& dscores) {
  const std::int64_t tokens = scores.size(0);
  const int slots = static_cast<int>(scores.size(1)), experts = static_cast<int>(scores.size(2));
  const int lanes = lanes_for(experts, 1);
  dispatch_floating(scores.dtype(), "mean_selection_backward", [&](auto tag) {
    using A = compute_t<device_t<typename decltype(tag)::type>>;
    selection_gradients<<<blocks_for(tokens * slots * lanes, kThreads), kThreads, 0, stream_of(scores)>>>(
        pointer<A>(dvalue), pointer<A>(scores), pointer<A>(mean), tokens, slots, experts, lanes, pointer<A>(dscores));
  });
  check_launch("mean_selection_backward");
}

}  // namespace switchyard::cuda
