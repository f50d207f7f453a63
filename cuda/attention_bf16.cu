// Flash attention for bf16 on the tensor cores (Dao, 2023, arXiv 2307.08691): the T x S matrix exists only as 16 x 64
// (backward 16 x 32 for keys) pieces in registers. A block of 4 warps owns 64 rows; each warp 16 of them, so a row's
// softmax needs only shuffles among 4 lanes. Head widths are padded with zeros to kWidth in shared memory.
//
// Backward runs two kernels that own different rows, one for dq and one for dk and dv: 7 products instead of the 5 of a
// single kernel, but every sum has one owner and a fixed order, without atomics.

#include "cuda/attention.cuh"
#include "cuda/device/mma.cuh"

namespace switchyard::cuda {
namespace {

using Bf16 = __nv_bfloat16;
using Problem = AttentionProblem<Bf16>;

constexpr int kRows = 64, kBlockThreads = 128;
constexpr float kLog2e = 1.4426950408889634f;

/// Elements of a padded row in shared memory; 16 bytes more than the data, so that eight rows fall into different
/// banks.
template <int kWidth>
constexpr int kPitch = kWidth + 8;

struct Lane {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int group = lane / 4, pair = lane % 4;

  /// Row (of 64) and column (of a block of 8) of element e of this lane's four sums.
  __device__ int row(int e) const { return warp * 16 + group + (e / 2) * 8; }
  __device__ int column(int e) const { return pair * 2 + e % 2; }
};

/// Eight values of which the first `count` exist. Out of line, as is dropout: unrolled into every use, the rare cases
/// would outgrow the instruction cache.
__device__ __noinline__ void copy_unaligned(Bf16* to, const Bf16* from, int count) {
  for (int n = 0; n < 8; ++n) to[n] = from != nullptr && n < count ? from[n] : __float2bfloat16_rn(0.0f);
}

__device__ __noinline__ float dropout_of_element(std::uint64_t seed, std::uint64_t start, std::uint64_t element,
                                                 float probability) {
  return uniform_from_bits(philox_element(seed, start, element)) < probability ? 0.0f : 1.0f / (1.0f - probability);
}
__device__ inline float dropout_factor(const Problem& p, int b, int h, int query, int key) {
  const std::uint64_t element = ((static_cast<std::uint64_t>(b) * p.heads + h) * p.queries + query) * p.keys + key;
  return dropout_of_element(p.seed, static_cast<std::uint64_t>(*p.stream_base) + p.stream_offset, element,
                            static_cast<float>(p.dropout));
}

/// Copies rows first .. first + kCount - 1 of one head to shared memory, with zeros outside; asynchronously where
/// `wide` says that rows are aligned and their width is a multiple of eight.
template <int kWidth, int kCount>
__device__ void load_rows(Bf16* to, const Heads<Bf16>& from, int b, int h, int first, int limit, bool wide) {
  constexpr int kVector = 8, kPerRow = kWidth / kVector;
  for (int i = threadIdx.x; i < kCount * kPerRow; i += kBlockThreads) {
    const int row = i / kPerRow, column = i % kPerRow * kVector;
    const bool inside = first + row < limit;
    const Bf16* source = from.row(b, h, inside ? first + row : 0) + column;
    Bf16* target = to + row * kPitch<kWidth> + column;
    if (wide) {
      const bool valid = inside && column < from.width;
      copy_async(target, valid ? source : from.data, valid);
      continue;
    }
    copy_unaligned(target, inside ? source : nullptr, from.width - column);
  }
}

/// Walks tiles first, first + step, ... below end: issue(tile, stage) starts the copies of a tile into one of two
/// stages while use(tile, stage) works on the one before it.
template <class Issue, class Use>
__device__ void two_stages(int first, int end, int step, Issue issue, Use use) {
  if (first < end) issue(first, 0);
  commit_copies();
  for (int tile = first, stage = 0; tile < end; tile += step, stage ^= 1) {
    if (tile + step < end) issue(tile + step, stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();  // this tile is there
    use(tile, stage);
    __syncthreads();  // its stage may be filled again
  }
}

/// sums[n] = this warp's 16 rows of `left` times rows n * 8 .. of `right`, over the width.
template <int kWidth, int kBlocks>
__device__ void row_by_row(float (&sums)[kBlocks][4], const Bf16* left, const Bf16* right, const Lane& at) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0;
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    std::uint32_t a[4];
    load_blocks<false>(a, left + (at.warp * 16 + at.lane % 16) * kPitch<kWidth> + k + at.lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < kBlocks; n += 2) {
      std::uint32_t b[4];
      load_blocks<false>(b,
                         right + (n * 8 + at.lane / 16 * 8 + at.lane % 8) * kPitch<kWidth> + k + at.lane / 8 % 2 * 8);
      multiply_blocks(sums[n], a, b[0], b[1]);
      multiply_blocks(sums[n + 1], a, b[2], b[3]);
    }
  }
}

/// sums += weights [16, kBlocks * 8] times the rows of `right` [kBlocks * 8, kWidth].
template <int kWidth, int kBlocks>
__device__ void add_weighted_rows(float (&sums)[kWidth / 8][4], const float (&weights)[kBlocks][4], const Bf16* right,
                                  const Lane& at) {
#pragma unroll
  for (int n = 0; n < kBlocks; n += 2) {
    const std::uint32_t a[4] = {pack_bf16(weights[n][0], weights[n][1]), pack_bf16(weights[n][2], weights[n][3]),
                                pack_bf16(weights[n + 1][0], weights[n + 1][1]),
                                pack_bf16(weights[n + 1][2], weights[n + 1][3])};
#pragma unroll
    for (int c = 0; c < kWidth / 8; c += 2) {
      std::uint32_t b[4];
      load_blocks<true>(b, right + (n * 8 + at.lane % 16) * kPitch<kWidth> + c * 8 + at.lane / 16 * 8);
      multiply_blocks(sums[c], a, b[0], b[1]);
      multiply_blocks(sums[c + 1], a, b[2], b[3]);
    }
  }
}

template <int kWidth>
__device__ void store_rows(const float (&sums)[kWidth / 8][4], const float (&factor)[2], const Heads<Bf16>& to, int b,
                           int h, int first, int limit, const Lane& at) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + at.row(half * 2);
    if (row >= limit) continue;
    Bf16* values = to.row(b, h, row);
#pragma unroll
    for (int c = 0; c < kWidth / 8; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = c * 8 + at.column(e);
        if (column < to.width) values[column] = __float2bfloat16_rn(sums[c][half * 2 + e] * factor[half]);
      }
  }
}

/// True when some pair of the tile may be hidden and each has to be asked for.
__device__ inline bool has_hidden(const Problem& p, int first_query, int queries, int first_key, int keys) {
  return p.mask || p.key_padding || first_query + queries > p.queries || first_key + keys > p.keys ||
         (p.causal && first_key + keys > p.key_end(first_query));
}

template <int kWidth>
__global__ void __launch_bounds__(kBlockThreads) forward(Problem p, Heads<Bf16> out, float* log_normalizer, bool wide) {
  extern __shared__ __align__(16) Bf16 shared[];
  constexpr int kTileElements = kRows * kPitch<kWidth>;
  Bf16* query = shared;
  const auto key_tile = [&](int stage) { return shared + (1 + 2 * stage) * kTileElements; };
  const auto value_tile = [&](int stage) { return key_tile(stage) + kTileElements; };
  const Lane at;
  // The last blocks of queries see the most keys: they start first.
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int h = blockIdx.y, b = blockIdx.z;
  load_rows<kWidth, kRows>(query, p.query, b, h, first_query, p.queries, wide);
  float sums[kWidth / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  const float scale = p.scale * kLog2e;
  const int end = p.key_end(min(p.queries, first_query + kRows) - 1);
  const auto issue = [&](int first_key, int stage) {
    load_rows<kWidth, kRows>(key_tile(stage), p.key, b, h, first_key, p.keys, wide);
    load_rows<kWidth, kRows>(value_tile(stage), p.value, b, h, first_key, p.keys, wide);
  };
  two_stages(0, end, kRows, issue, [&](int first_key, int stage) {
    float weights[kRows / 8][4];
    row_by_row<kWidth>(weights, query, key_tile(stage), at);
    const bool check = has_hidden(p, first_query, kRows, first_key, kRows);
    float next[2] = {largest[0], largest[1]};
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        weights[n][e] *= scale;
        if (check && !p.visible(b, first_query + at.row(e), first_key + n * 8 + at.column(e)))
          weights[n][e] = -INFINITY;
        next[e / 2] = fmaxf(next[e / 2], weights[n][e]);
      }
    float shift[2], correction[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      next[half] = fmaxf(next[half], __shfl_xor_sync(0xffffffffu, next[half], 1));
      next[half] = fmaxf(next[half], __shfl_xor_sync(0xffffffffu, next[half], 2));
      shift[half] = next[half] == -INFINITY ? 0.0f : next[half];
      correction[half] = exp2f(largest[half] - shift[half]);
      largest[half] = next[half];
      total[half] *= correction[half];
    }
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        weights[n][e] = exp2f(weights[n][e] - shift[e / 2]);
        total[e / 2] += weights[n][e];
      }
    if (p.dropout > 0)
#pragma unroll
      for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          weights[n][e] *= dropout_factor(p, b, h, first_query + at.row(e), first_key + n * 8 + at.column(e));
#pragma unroll
    for (int c = 0; c < kWidth / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[c][e] *= correction[e / 2];
    add_weighted_rows<kWidth>(sums, weights, value_tile(stage), at);
  });
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
    inverse[half] = total[half] == 0.0f ? 0.0f : 1.0f / total[half];
    const int row = first_query + at.row(half * 2);
    if (at.pair == 0 && row < p.queries)
      log_normalizer[(static_cast<std::int64_t>(b) * p.heads + h) * p.queries + row] =
          (largest[half] + log2f(total[half])) / kLog2e;
  }
  store_rows<kWidth>(sums, inverse, out, b, h, first_query, p.queries, at);
}

/// What the backward kernels read of the forward pass, per query.
struct Saved {
  const float *log_normalizer, *delta;
};

/// Turns logits (in `weights`) and dout . value (in `dweights`) of one element into the weight that met the value, and
/// the derivative for the unscaled logit.
__device__ inline void differentiate(const Problem& p, int b, int h, int query, int key, bool check, float normalizer,
                                     float delta, float& weight, float& dweight) {
  float probability = exp2f(weight * (p.scale * kLog2e) - normalizer * kLog2e);
  if (check && !p.visible(b, query, key)) probability = 0;
  const float factor = p.dropout > 0 ? dropout_factor(p, b, h, query, key) : 1.0f;
  weight = probability * factor;
  dweight = probability == 0 ? 0.0f : p.scale * probability * (factor * dweight - delta);
}

template <int kWidth>
__global__ void __launch_bounds__(kBlockThreads)
    query_gradient(Problem p, Heads<Bf16> dout, Saved saved, Heads<Bf16> dquery, bool wide) {
  extern __shared__ __align__(16) Bf16 shared[];
  constexpr int kTileElements = kRows * kPitch<kWidth>, kStep = 32;
  constexpr int kStepElements = kStep * kPitch<kWidth>;
  Bf16 *query = shared, *gradient = query + kTileElements;
  const auto key_tile = [&](int stage) { return gradient + kTileElements + 2 * stage * kStepElements; };
  const auto value_tile = [&](int stage) { return key_tile(stage) + kStepElements; };
  const Lane at;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int h = blockIdx.y, b = blockIdx.z;
  load_rows<kWidth, kRows>(query, p.query, b, h, first_query, p.queries, wide);
  load_rows<kWidth, kRows>(gradient, dout, b, h, first_query, p.queries, wide);
  float normalizer[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = min(p.queries - 1, first_query + at.row(half * 2));
    const std::int64_t index = (static_cast<std::int64_t>(b) * p.heads + h) * p.queries + row;
    normalizer[half] = saved.log_normalizer[index];
    delta[half] = saved.delta[index];
  }
  float sums[kWidth / 8][4] = {};
  const int end = p.key_end(min(p.queries, first_query + kRows) - 1);
  const auto issue = [&](int first_key, int stage) {
    load_rows<kWidth, kStep>(key_tile(stage), p.key, b, h, first_key, p.keys, wide);
    load_rows<kWidth, kStep>(value_tile(stage), p.value, b, h, first_key, p.keys, wide);
  };
  two_stages(0, end, kStep, issue, [&](int first_key, int stage) {
    float weights[kStep / 8][4], dweights[kStep / 8][4];
    row_by_row<kWidth>(weights, query, key_tile(stage), at);
    row_by_row<kWidth>(dweights, gradient, value_tile(stage), at);
    const bool check = has_hidden(p, first_query, kRows, first_key, kStep);
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        differentiate(p, b, h, first_query + at.row(e), first_key + n * 8 + at.column(e), check, normalizer[e / 2],
                      delta[e / 2], weights[n][e], dweights[n][e]);
    add_weighted_rows<kWidth>(sums, dweights, key_tile(stage), at);
  });
  const float one[2] = {1, 1};
  store_rows<kWidth>(sums, one, dquery, b, h, first_query, p.queries, at);
}

/// Rows are keys here: the tile of logits is transposed.
template <int kWidth>
__global__ void __launch_bounds__(kBlockThreads)
    key_value_gradient(Problem p, Heads<Bf16> dout, Saved saved, Heads<Bf16> dkey, Heads<Bf16> dvalue, bool wide) {
  extern __shared__ __align__(16) Bf16 shared[];
  constexpr int kTileElements = kRows * kPitch<kWidth>, kStep = 32;
  constexpr int kStepElements = kStep * kPitch<kWidth>;
  Bf16 *key = shared, *value = key + kTileElements;
  const auto query_tile = [&](int stage) { return value + kTileElements + 2 * stage * kStepElements; };
  const auto gradient_tile = [&](int stage) { return query_tile(stage) + kStepElements; };
  __shared__ float normalizer[2][kStep], delta[2][kStep];
  const Lane at;
  const int first_key = static_cast<int>(blockIdx.x) * kRows, h = blockIdx.y, b = blockIdx.z;
  load_rows<kWidth, kRows>(key, p.key, b, h, first_key, p.keys, wide);
  load_rows<kWidth, kRows>(value, p.value, b, h, first_key, p.keys, wide);
  float key_sums[kWidth / 8][4] = {}, value_sums[kWidth / 8][4] = {};
  const std::int64_t seen_from = p.causal ? max(std::int64_t{0}, first_key - p.query_offset) : 0;
  const auto issue = [&](int first_query, int stage) {
    load_rows<kWidth, kStep>(query_tile(stage), p.query, b, h, first_query, p.queries, wide);
    load_rows<kWidth, kStep>(gradient_tile(stage), dout, b, h, first_query, p.queries, wide);
    if (threadIdx.x < kStep) {
      const int row = min(p.queries - 1, first_query + static_cast<int>(threadIdx.x));
      const std::int64_t index = (static_cast<std::int64_t>(b) * p.heads + h) * p.queries + row;
      normalizer[stage][threadIdx.x] = saved.log_normalizer[index];
      delta[stage][threadIdx.x] = saved.delta[index];
    }
  };
  two_stages(static_cast<int>(seen_from) / kStep * kStep, p.queries, kStep, issue, [&](int first_query, int stage) {
    float weights[kStep / 8][4], dweights[kStep / 8][4];
    row_by_row<kWidth>(weights, key, query_tile(stage), at);
    row_by_row<kWidth>(dweights, value, gradient_tile(stage), at);
    const bool check = has_hidden(p, first_query, kStep, first_key, kRows);
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = n * 8 + at.column(e);
        differentiate(p, b, h, first_query + column, first_key + at.row(e), check, normalizer[stage][column],
                      delta[stage][column], weights[n][e], dweights[n][e]);
      }
    add_weighted_rows<kWidth>(value_sums, weights, gradient_tile(stage), at);
    add_weighted_rows<kWidth>(key_sums, dweights, query_tile(stage), at);
  });
  const float one[2] = {1, 1};
  store_rows<kWidth>(key_sums, one, dkey, b, h, first_key, p.keys, at);
  store_rows<kWidth>(value_sums, one, dvalue, b, h, first_key, p.keys, at);
}

template <class F>
void with_padded_width(int width, F&& f) {
  if (width <= 64) f(std::integral_constant<int, 64>{});
  else if (width <= 96) f(std::integral_constant<int, 96>{});
  else f(std::integral_constant<int, 128>{});
}

bool is_wide(const Heads<Bf16>& x) {
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.batch % 8 == 0 && x.token % 8 == 0 &&
         x.head % 8 == 0 && x.width % 8 == 0;
}

dim3 grid_of(const Problem& p, int rows) {
  check(p.heads <= 65535 && p.batch <= 65535, "attention: batch ", p.batch, " and heads ", p.heads,
        ", a launch takes at most 65535 each");
  return dim3(blocks_for(rows, kRows), static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
}

}  // namespace

bool has_tensor_core_attention(const Problem& p) {
  return p.position == nullptr && p.query.width == p.value.width && p.query.width <= 128 && p.keys > 0;
}

void launch_attention(const Problem& p, const Heads<Bf16>& out, float* log_normalizer, cudaStream_t stream) {
  const bool wide = is_wide(p.query) && is_wide(p.key) && is_wide(p.value);
  with_padded_width(p.query.width, [&](auto width) {
    constexpr std::size_t kBytes = 5 * kRows * kPitch<width.value> * sizeof(Bf16);
    allow_shared_memory(forward<width.value>, kBytes);
    forward<width.value><<<grid_of(p, p.queries), kBlockThreads, kBytes, stream>>>(p, out, log_normalizer, wide);
  });
  check_launch("attention");
}

void launch_attention_backward(const Problem& p, const Heads<Bf16>& dout, const float* log_normalizer,
                               const float* delta, const Heads<Bf16>& dquery, const Heads<Bf16>& dkey,
                               const Heads<Bf16>& dvalue, cudaStream_t stream) {
  const bool wide = is_wide(p.query) && is_wide(p.key) && is_wide(p.value) && is_wide(dout);
  const Saved saved{log_normalizer, delta};
  with_padded_width(p.query.width, [&](auto width) {
    constexpr std::size_t kBytes = (2 * kRows + 4 * 32) * kPitch<width.value> * sizeof(Bf16);
    allow_shared_memory(query_gradient<width.value>, kBytes);
    allow_shared_memory(key_value_gradient<width.value>, kBytes);
    if (p.queries > 0)
      query_gradient<width.value>
          <<<grid_of(p, p.queries), kBlockThreads, kBytes, stream>>>(p, dout, saved, dquery, wide);
    key_value_gradient<width.value>
        <<<grid_of(p, p.keys), kBlockThreads, kBytes, stream>>>(p, dout, saved, dkey, dvalue, wide);
  });
  check_launch("attention_backward");
}

}  // namespace switchyard::cuda
