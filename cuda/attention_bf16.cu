// Flash attention for bf16 on the tensor cores, forward (Dao, 2023, arXiv 2307.08691): the T x S matrix exists only as
// 16 x 64 pieces in registers.

#include "cuda/attention_bf16_backward.cuh"

namespace switchyard::cuda {
namespace {

/// Keys that pass by at once. With positions a band of them needs room as well, and two blocks are to fit.
template <bool kPosition>
constexpr int kKeys = kPosition ? 32 : 64;
template <int kWidth, bool kPosition>
constexpr std::size_t kForwardBytes = (kRows + 4 * kKeys<kPosition>)*kPitch<kWidth> * sizeof(Bf16);
template <int kWidth>
constexpr std::size_t kForwardBandBytes = BandRing<kWidth, kKeys<true>>::kElements * sizeof(Bf16) +
                                          4 * kRowSkewFloats<kKeys<true>> * sizeof(float);

template <int kWidth, bool kPosition>
__global__ void __launch_bounds__(kBlockThreads)
    forward(Problem p, Heads<Bf16> out, float* log_normalizer, int vector) {
  extern __shared__ __align__(16) Bf16 shared[];
  constexpr int kStep = kKeys<kPosition>, kStepElements = kStep * kPitch<kWidth>;
  Bf16* query = shared;
  const auto key_tile = [&](int stage) { return query + kRows * kPitch<kWidth> + 2 * stage * kStepElements; };
  const auto value_tile = [&](int stage) { return key_tile(stage) + kStepElements; };
  const Lane at;
  // The last blocks of queries see the most keys: they start first.
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int h = blockIdx.y, b = blockIdx.z;
  load_rows<kWidth, kRows>(query, p.query, b, h, first_query, p.queries, vector);
  float sums[kWidth / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  const float scale = p.scale * kLog2e;
  const int end = p.key_end(min(p.queries, first_query + kRows) - 1);
  BandRing<kWidth, kStep> ring;
  if constexpr (kPosition)
    ring = position_ring<kWidth, kStep>(p, key_tile(2), h, -first_query - (kRows - 1), 1, vector);
  const auto issue = [&](int first_key, int stage) {
    if constexpr (kPosition) ring.load_step(first_key / kStep);
    load_rows<kWidth, kStep>(key_tile(stage), p.key, b, h, first_key, p.keys, vector);
    load_rows<kWidth, kStep>(value_tile(stage), p.value, b, h, first_key, p.keys, vector);
  };
  two_stages(0, end, kStep, issue, [&](int first_key, int stage) {
    float weights[kStep / 8][4];
    const Tile<kWidth> query_rows{query + at.warp * kWarpRows * kPitch<kWidth>};
    row_by_row<kWidth>(weights, query_rows, Tile<kWidth>{key_tile(stage)}, at);
    if constexpr (kPosition) {
      float* scratch = ring.scratch() + at.warp * kRowSkewFloats<kStep>;
      const auto band = ring.rows(first_key / kStep, kRows - kWarpRows * (at.warp + 1));
      add_row_band<kWidth, kStep>(weights, query_rows, band, scratch, at);
    }
    const bool check = has_hidden(p, first_query, kRows, first_key, kStep);
    float next[2] = {largest[0], largest[1]};
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n)
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
    for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        weights[n][e] = exp2f(weights[n][e] - shift[e / 2]);
        total[e / 2] += weights[n][e];
      }
    if (p.dropout > 0)
#pragma unroll
      for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          weights[n][e] *= dropout_factor(p, b, h, first_query + at.row(e), first_key + n * 8 + at.column(e));
#pragma unroll
    for (int c = 0; c < kWidth / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[c][e] *= correction[e / 2];
    add_weighted_rows<kWidth>(sums, weights, Tile<kWidth>{value_tile(stage)}, at);
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

}  // namespace

dim3 row_blocks(const Problem& p, int rows) {
  check(p.heads <= 65535 && p.batch <= 65535, "attention: batch ", p.batch, " and heads ", p.heads,
        ", a launch takes at most 65535 each");
  return dim3(blocks_for(rows, kRows), static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
}

bool has_tensor_core_attention(const Problem& p, Device device) {
  if (p.query.width != p.value.width || p.query.width > 128) return false;
  if (p.batch == 0 || p.heads == 0 || p.queries == 0 || p.keys == 0) return false;
  const std::size_t most = backward_bytes<128, kBackwardStep>(true, kRowSkewFloats<kBackwardStep>);  // of all kernels
  return p.position == nullptr || context(device).shared_memory_per_block >= most;
}

void launch_attention(const Problem& p, const Heads<Bf16>& out, float* log_normalizer, cudaStream_t stream) {
  const auto launch = [&](auto kernel, std::size_t bytes, int vector) {
    allow_shared_memory(kernel, bytes);
    kernel<<<row_blocks(p, p.queries), kBlockThreads, bytes, stream>>>(p, out, log_normalizer, vector);
  };
  const int vector = std::min({vector_of(p.query), vector_of(p.key), vector_of(p.value)});
  with_padded_width(p.query.width, [&](auto width) {
    if (p.position == nullptr) launch(forward<width.value, false>, kForwardBytes<width.value, false>, vector);
    else
      launch(forward<width.value, true>, kForwardBytes<width.value, true> + kForwardBandBytes<width.value>,
             std::min(vector, vector_of(position_rows(p))));
  });
  check_launch("attention");
}

}  // namespace switchyard::cuda
