// Attention for every dtype and option, without tensor cores (bf16 is mostly in attention_bf16.cu and
// attention_hopper.cuh): a warp per query (or per key, or per relative position, in the backward pass) walks the other
// side 32 at a time, a lane each for the products, then all lanes over the channels for the sums. Nothing of size T x S
// is stored; probabilities are made again from log_normalizer. Each gradient has a kernel of its own that sums in a
// fixed order, so results do not vary.

#include "cuda/attention.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kChannels = kMaxHeadWidth / 32, kWarps = 4;
constexpr unsigned kAllLanes = 0xffffffffu;

/// The (batch, head, item) of this warp; false beyond the last.
__device__ inline bool warp_item(int batch, int heads, int items, int* b, int* h, int* item) {
  const std::int64_t warp = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (warp >= static_cast<std::int64_t>(batch) * heads * items) return false;
  *item = static_cast<int>(warp % items);
  *h = static_cast<int>(warp / items % heads);
  *b = static_cast<int>(warp / items / heads);
  return true;
}

/// sums[c] += factor of lane n * row(n)[channel] for the 32 rows of a chunk.
template <class D, class Row>
__device__ void add_rows(compute_t<D> factor, Row row, int width, compute_t<D> (&sums)[kChannels]) {
  const int lane = threadIdx.x % 32;
  for (int n = 0; n < 32; ++n) {
    const compute_t<D> f = __shfl_sync(kAllLanes, factor, n);
    if (f == compute_t<D>(0)) continue;
    const D* values = row(n);
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (c * 32 + lane < width) sums[c] += f * load(values + c * 32 + lane);
  }
}

template <class D>
__device__ void store_channels(const compute_t<D> (&sums)[kChannels], compute_t<D> factor, int width, D* to) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int c = 0; c < kChannels; ++c)
    if (c * 32 + lane < width) to[c * 32 + lane] = convert<D>(sums[c] * factor);
}

template <class D>
__global__ void forward(AttentionProblem<D> p, Heads<D> out, compute_t<D>* log_normalizer) {
  using A = compute_t<D>;
  int b, h, i;
  if (!warp_item(p.batch, p.heads, p.queries, &b, &h, &i)) return;
  const int lane = threadIdx.x % 32;
  A largest = -A(INFINITY), sum = 0, sums[kChannels] = {};
  for (int j0 = 0; j0 < p.key_end(i); j0 += 32) {
    const int j = j0 + lane;
    const bool seen = p.visible(b, i, j);
    const A logit = seen ? p.logit(b, h, i, j) : -A(INFINITY);
    const A next = Max{}(warp_reduce(logit, Max{}), largest);
    if (next == -A(INFINITY)) continue;
    const A correction = exp(largest - next);
    A weight = seen ? exp(logit - next) : A(0);
    sum = sum * correction + warp_reduce(weight, Add{});
    largest = next;
    if (seen) weight *= p.dropout_factor(b, h, i, j);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sums[c] *= correction;
    add_rows<D>(
        weight, [&](int n) { return p.value.row(b, h, j0 + n); }, p.value.width, sums);
  }
  store_channels<D>(sums, sum > A(0) || sum != sum ? A(1) / sum : A(0), p.value.width, out.row(b, h, i));
  if (lane == 0) log_normalizer[(static_cast<std::int64_t>(b) * p.heads + h) * p.queries + i] = largest + log(sum);
}

template <class D>
__global__ void probabilities(AttentionProblem<D> p, compute_t<D>* out) {
  using A = compute_t<D>;
  int b, h, i;
  if (!warp_item(p.batch, p.heads, p.queries, &b, &h, &i)) return;
  const int lane = threadIdx.x % 32;
  out += ((static_cast<std::int64_t>(b) * p.heads + h) * p.queries + i) * p.keys;
  A largest = -A(INFINITY), sum = 0;
  for (int j = lane; j < p.keys; j += 32) {
    const A logit = p.visible(b, i, j) ? p.logit(b, h, i, j) : -A(INFINITY);
    out[j] = logit;
    largest = Max{}(logit, largest);
  }
  largest = warp_reduce(largest, Max{});
  const A shift = largest == -A(INFINITY) ? A(0) : largest;
  for (int j = lane; j < p.keys; j += 32) sum += exp(out[j] - shift);
  sum = warp_reduce(sum, Add{});
  const A inverse = sum == A(0) ? A(0) : A(1) / sum;
  for (int j = lane; j < p.keys; j += 32) out[j] = exp(out[j] - shift) * inverse;
}

/// What the gradient kernels share: probabilities from log_normalizer, and delta[query] = dout . out.
template <class D>
struct Backward {
  using A = compute_t<D>;
  AttentionProblem<D> p;
  Heads<D> dout;
  const A *log_normalizer, *delta;

  /// The weight of value j in out_i (dropout included), and the derivative for the logit times scale; zeros if hidden.
  __device__ void pair(int b, int h, int i, int j, A* weight, A* dlogit) const {
    *weight = *dlogit = A(0);
    if (!p.visible(b, i, j)) return;
    const std::int64_t row = (static_cast<std::int64_t>(b) * p.heads + h) * p.queries + i;
    const A probability = exp(p.logit(b, h, i, j) - log_normalizer[row]);
    const A factor = p.dropout_factor(b, h, i, j);
    const D* g = dout.row(b, h, i);
    const D* v = p.value.row(b, h, j);
    A dweight = 0;
    for (int c = 0; c < p.value.width; ++c) dweight += load(g + c) * load(v + c);
    *weight = probability * factor;
    *dlogit = p.scale * probability * (factor * dweight - delta[row]);
  }
};

/// out[b, h, i] = x . y over the channels of a token's head. 16 lanes per row read kPack channels at once.
template <int kPack, class D>
__global__ void row_products(int batch, int heads, int queries, Heads<D> x, Heads<D> y, compute_t<D>* out) {
  using A = compute_t<D>;
  using Pack = Vector<D, kPack>;
  const std::int64_t rows = static_cast<std::int64_t>(batch) * queries * heads;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 16) + threadIdx.x / 16;
  const std::int64_t inside = min(row, rows - 1);
  const int h = static_cast<int>(inside % heads), i = static_cast<int>(inside / heads % queries);
  const int b = static_cast<int>(inside / heads / queries);
  A sum = 0;
  for (int c = threadIdx.x % 16 * kPack; c < x.width; c += 16 * kPack) {
    const Pack left = *reinterpret_cast<const Pack*>(x.row(b, h, i) + c);
    const Pack right = *reinterpret_cast<const Pack*>(y.row(b, h, i) + c);
#pragma unroll
    for (int n = 0; n < kPack; ++n) sum += load(left.values + n) * load(right.values + n);
  }
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  if (threadIdx.x % 16 == 0 && row < rows) out[(static_cast<std::int64_t>(b) * heads + h) * queries + i] = sum;
}

template <class D>
__global__ void query_gradient(Backward<D> g, Heads<D> dquery) {
  using A = compute_t<D>;
  const AttentionProblem<D>& p = g.p;
  int b, h, i;
  if (!warp_item(p.batch, p.heads, p.queries, &b, &h, &i)) return;
  A sums[kChannels] = {};
  for (int j0 = 0; j0 < p.key_end(i); j0 += 32) {
    A weight, dlogit;
    g.pair(b, h, i, j0 + static_cast<int>(threadIdx.x % 32), &weight, &dlogit);
    add_rows<D>(
        dlogit, [&](int n) { return p.key.row(b, h, j0 + n); }, p.query.width, sums);
    if (!p.position) continue;
    // Neighbouring keys have neighbouring positions; where a row does not exist dlogit is 0 or the pair is hidden.
    const std::int64_t first = j0 - i - p.query_offset + p.position_zero;
    const std::int64_t mine = first + threadIdx.x % 32;
    const A factor = mine >= 0 && mine < p.positions ? dlogit : A(0);
    add_rows<D>(
        factor, [&](int n) { return p.position + (first + n) * p.position_row + h * p.position_head; }, p.query.width,
        sums);
  }
  store_channels<D>(sums, A(1), p.query.width, dquery.row(b, h, i));
}

template <class D>
__global__ void key_value_gradient(Backward<D> g, Heads<D> dkey, Heads<D> dvalue) {
  using A = compute_t<D>;
  const AttentionProblem<D>& p = g.p;
  int b, h, j;
  if (!warp_item(p.batch, p.heads, p.keys, &b, &h, &j)) return;
  A dk[kChannels] = {}, dv[kChannels] = {};
  const std::int64_t first_query = p.causal ? max(std::int64_t{0}, j - p.query_offset) : 0;
  for (int i0 = static_cast<int>(first_query) / 32 * 32; i0 < p.queries; i0 += 32) {
    A weight, dlogit;
    g.pair(b, h, i0 + static_cast<int>(threadIdx.x % 32), j, &weight, &dlogit);
    add_rows<D>(
        weight, [&](int n) { return g.dout.row(b, h, i0 + n); }, p.value.width, dv);
    add_rows<D>(
        dlogit, [&](int n) { return p.query.row(b, h, i0 + n); }, p.query.width, dk);
  }
  store_channels<D>(dk, A(1), p.query.width, dkey.row(b, h, j));
  store_channels<D>(dv, A(1), p.value.width, dvalue.row(b, h, j));
}

/// A warp per relative position and head; out [R, H, d] dense.
template <class D>
__global__ void position_gradient(Backward<D> g, D* out) {
  using A = compute_t<D>;
  const AttentionProblem<D>& p = g.p;
  int unused, h, r;
  if (!warp_item(1, p.heads, static_cast<int>(p.positions), &unused, &h, &r)) return;
  A sums[kChannels] = {};
  const std::int64_t distance = r - p.position_zero + p.query_offset;  // j - i
  const std::int64_t first = max(std::int64_t{0}, -distance),
                     last = min(static_cast<std::int64_t>(p.queries), p.keys - distance);
  for (int b = 0; b < p.batch; ++b)
    for (std::int64_t i0 = first; i0 < last; i0 += 32) {
      const std::int64_t i = i0 + threadIdx.x % 32;
      A weight = 0, dlogit = 0;
      if (i < last) g.pair(b, h, static_cast<int>(i), static_cast<int>(i + distance), &weight, &dlogit);
      add_rows<D>(
          dlogit, [&](int n) { return p.query.row(b, h, static_cast<int>(i0) + n); }, p.query.width, sums);
    }
  store_channels<D>(sums, A(1), p.query.width, out + (static_cast<std::int64_t>(r) * p.heads + h) * p.query.width);
}

unsigned warp_blocks(std::int64_t warps) { return blocks_for(warps, kWarps); }

}  // namespace

void attention(const Tensor& query, const Tensor& key, const Tensor& value, const ops::AttentionOptions& options,
               const Tensor& out, const Tensor& log_normalizer) {
  dispatch_floating(query.dtype(), "attention", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto problem = problem_of<T>(query, key, value, options);
    if constexpr (std::is_same_v<T, bfloat16>)
      if (has_tensor_core_attention(problem, query.device())) {
        float* normalizer = log_normalizer.data<float>();
        if (has_hopper_attention(problem, heads_of<T>(out), query.device()))
          return launch_hopper_attention(problem, heads_of<T>(out), normalizer, query.device());
        return launch_attention(problem, heads_of<T>(out), normalizer, stream_of(query));
      }
    forward<<<warp_blocks(log_normalizer.numel()), kWarps * 32, 0, stream_of(query)>>>(
        problem, heads_of<T>(out), pointer<accumulate_t<T>>(log_normalizer));
  });
  check_launch("attention");
}

void attention_backward(const Tensor& dout, const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& out, const Tensor& log_normalizer, const ops::AttentionOptions& options,
                        const Tensor& dquery, const Tensor& dkey, const Tensor& dvalue, const Tensor& dposition_key) {
  const cudaStream_t stream = stream_of(query);
  const Tensor delta = Tensor::empty_like(log_normalizer);
  dispatch_floating(query.dtype(), "attention_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using D = device_t<T>;
    using A = accumulate_t<T>;
    const AttentionProblem<D> problem = problem_of<T>(query, key, value, options);
    const Backward<D> backward{problem, heads_of<T>(dout), pointer<A>(log_normalizer), pointer<A>(delta)};
    const int threads = kWarps * 32;
    if (delta.numel() > 0) {
      constexpr int kPack = 16 / sizeof(D);
      const auto aligned = [](const D* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
      const bool packed = problem.value.width % kPack == 0 && aligned(pointer<T>(dout)) && aligned(pointer<T>(out));
      const auto kernel = packed ? row_products<kPack, D> : row_products<1, D>;
      kernel<<<blocks_for(delta.numel(), kThreads / 16), kThreads, 0, stream>>>(
          problem.batch, problem.heads, problem.queries, heads_of<T>(dout), heads_of<T>(out), pointer<A>(delta));
    }
    if constexpr (std::is_same_v<T, bfloat16>)
      if (has_tensor_core_attention(problem, query.device())) {
        const float *normalizer = log_normalizer.data<float>(), *products = delta.data<float>();
        if (has_hopper_attention(problem, heads_of<T>(dout), query.device()))
          return launch_hopper_attention_backward(problem, heads_of<T>(dout), normalizer, products, heads_of<T>(dquery),
                                                  heads_of<T>(dkey), heads_of<T>(dvalue), query.device());
        launch_attention_backward(problem, heads_of<T>(dout), normalizer, products, heads_of<T>(dquery),
                                  heads_of<T>(dkey), heads_of<T>(dvalue), stream);
        if (dposition_key.defined() && dposition_key.numel() > 0)
          launch_position_gradient(problem, heads_of<T>(dout), normalizer, products, pointer<T>(dposition_key),
                                   query.device());
        return;
      }
    if (delta.numel() > 0)
      query_gradient<<<warp_blocks(delta.numel()), threads, 0, stream>>>(backward, heads_of<T>(dquery));
    const std::int64_t key_warps = key.size(0) * key.size(1) * key.size(2);
    if (key_warps > 0)
      key_value_gradient<<<warp_blocks(key_warps), threads, 0, stream>>>(backward, heads_of<T>(dkey),
                                                                         heads_of<T>(dvalue));
    if (dposition_key.defined() && dposition_key.numel() > 0)
      position_gradient<<<warp_blocks(problem.positions * problem.heads), threads, 0, stream>>>(
          backward, pointer<T>(dposition_key));
  });
  check_launch("attention_backward");
}

void attention_probabilities(const Tensor& query, const Tensor& key, const ops::AttentionOptions& options,
                             const Tensor& out) {
  if (out.numel() == 0) return;
  dispatch_floating(query.dtype(), "attention_probabilities", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const std::int64_t rows = query.size(0) * query.size(1) * query.size(2);
    probabilities<<<warp_blocks(rows), kWarps * 32, 0, stream_of(query)>>>(problem_of<T>(query, key, key, options),
                                                                           pointer<accumulate_t<T>>(out));
  });
  check_launch("attention_probabilities");
}

}  // namespace switchyard::cuda
