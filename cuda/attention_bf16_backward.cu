// Flash attention for bf16 on the tensor cores, backward. Two kernels own different rows, one for dq and one for dk and
// dv: 7 products instead of the 5 of a single kernel, but every sum has one owner and a fixed order, without atomics.
// A third owns position keys.

#include "cuda/attention_bf16_backward.cuh"

namespace switchyard::cuda {
namespace {

template <int kWidth, bool kPosition>
__global__ void __launch_bounds__(kBlockThreads)
    query_gradient(Problem p, Heads<Bf16> dout, Saved saved, Heads<Bf16> dquery, int vector) {
  extern __shared__ __align__(16) Bf16 shared[];
  constexpr int kTileElements = kRows * kPitch<kWidth>;
  constexpr int kStep = kBackwardStep, kStepElements = kStep * kPitch<kWidth>;
  Bf16 *query = shared, *gradient = query + kTileElements;
  const auto key_tile = [&](int stage) { return gradient + kTileElements + 2 * stage * kStepElements; };
  const auto value_tile = [&](int stage) { return key_tile(stage) + kStepElements; };
  const Lane at;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int h = blockIdx.y, b = blockIdx.z;
  load_rows<kWidth, kRows>(query, p.query, b, h, first_query, p.queries, vector);
  load_rows<kWidth, kRows>(gradient, dout, b, h, first_query, p.queries, vector);
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
  BandRing<kWidth, kStep> ring;
  if constexpr (kPosition)
    ring = position_ring<kWidth, kStep>(p, key_tile(2), h, -first_query - (kRows - 1), 1, vector);
  const Tile<kWidth> query_rows{query + at.warp * kWarpRows * kPitch<kWidth>};
  const Tile<kWidth> gradient_rows{gradient + at.warp * kWarpRows * kPitch<kWidth>};
  const auto issue = [&](int first_key, int stage) {
    if constexpr (kPosition) ring.load_step(first_key / kStep);
    load_rows<kWidth, kStep>(key_tile(stage), p.key, b, h, first_key, p.keys, vector);
    load_rows<kWidth, kStep>(value_tile(stage), p.value, b, h, first_key, p.keys, vector);
  };
  two_stages(0, end, kStep, issue, [&](int first_key, int stage) {
    float weights[kStep / 8][4], dweights[kStep / 8][4];
    row_by_row<kWidth>(weights, query_rows, Tile<kWidth>{key_tile(stage)}, at);
    float* scratch = nullptr;
    typename BandRing<kWidth, kStep>::Rows band{};
    if constexpr (kPosition) {
      scratch = ring.scratch() + at.warp * kRowSkewFloats<kStep>;
      band = ring.rows(first_key / kStep, kRows - kWarpRows * (at.warp + 1));
      add_row_band<kWidth, kStep>(weights, query_rows, band, scratch, at);
    }
    row_by_row<kWidth>(dweights, gradient_rows, Tile<kWidth>{value_tile(stage)}, at);
    const bool check = has_hidden(p, first_query, kRows, first_key, kStep);
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        differentiate(p, b, h, first_query + at.row(e), first_key + n * 8 + at.column(e), check, normalizer[e / 2],
                      delta[e / 2], weights[n][e], dweights[n][e]);
    add_weighted_rows<kWidth>(sums, dweights, Tile<kWidth>{key_tile(stage)}, at);
    if constexpr (kPosition) {
      float moved[kBandRows<kStep> / 8][4];
      move_to_band<kStep>(dweights, moved, scratch, at);
      add_weighted_rows<kWidth>(sums, moved, band, at);
    }
  });
  const float one[2] = {1, 1};
  store_rows<kWidth>(sums, one, dquery, b, h, first_query, p.queries, at);
}

/// Rows are keys here: the tile of logits is transposed.
template <int kWidth, bool kPosition>
__global__ void __launch_bounds__(kBlockThreads)
    key_value_gradient(Problem p, Heads<Bf16> dout, Saved saved, Heads<Bf16> dkey, Heads<Bf16> dvalue, int vector) {
  extern __shared__ __align__(16) Bf16 shared[];
  constexpr int kTileElements = kRows * kPitch<kWidth>;
  constexpr int kStep = kPosition ? kColumnBandStep : kBackwardStep, kStepElements = kStep * kPitch<kWidth>;
  Bf16 *key = shared, *value = key + kTileElements;
  const auto query_tile = [&](int stage) { return value + kTileElements + 2 * stage * kStepElements; };
  const auto gradient_tile = [&](int stage) { return query_tile(stage) + kStepElements; };
  __shared__ float normalizer[2][kStep], delta[2][kStep];
  const Lane at;
  const int first_key = static_cast<int>(blockIdx.x) * kRows, h = blockIdx.y, b = blockIdx.z;
  load_rows<kWidth, kRows>(key, p.key, b, h, first_key, p.keys, vector);
  load_rows<kWidth, kRows>(value, p.value, b, h, first_key, p.keys, vector);
  float key_sums[kWidth / 8][4] = {}, value_sums[kWidth / 8][4] = {};
  const int begin = p.causal ? static_cast<int>(max(std::int64_t{0}, first_key - p.query_offset)) / kStep * kStep : 0;
  BandRing<kWidth, kStep> ring;
  if constexpr (kPosition)
    ring = position_ring<kWidth, kStep>(p, query_tile(2), h, first_key + (kRows - 1) - begin, -1, vector);
  const Tile<kWidth> key_rows{key + at.warp * kWarpRows * kPitch<kWidth>};
  const Tile<kWidth> value_rows{value + at.warp * kWarpRows * kPitch<kWidth>};
  const auto issue = [&](int first_query, int stage) {
    if constexpr (kPosition) ring.load_step((first_query - begin) / kStep);
    load_rows<kWidth, kStep>(query_tile(stage), p.query, b, h, first_query, p.queries, vector);
    load_rows<kWidth, kStep>(gradient_tile(stage), dout, b, h, first_query, p.queries, vector);
    saved.load<kStep>(p, b, h, first_query, normalizer[stage], delta[stage]);
  };
  two_stages(begin, p.queries, kStep, issue, [&](int first_query, int stage) {
    float weights[kStep / 8][4], dweights[kStep / 8][4];
    row_by_row<kWidth>(weights, key_rows, Tile<kWidth>{query_tile(stage)}, at);
    if constexpr (kPosition) {
      float* scratch = ring.scratch() + at.warp * kColumnSkewFloats<kStep>;
      const auto band = ring.rows((first_query - begin) / kStep, kRows - kWarpRows * (at.warp + 1));
      add_column_band<kWidth, kStep, false>(weights, band, Tile<kWidth>{query_tile(stage)}, scratch, at);
    }
    row_by_row<kWidth>(dweights, value_rows, Tile<kWidth>{gradient_tile(stage)}, at);
    const bool check = has_hidden(p, first_query, kStep, first_key, kRows);
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = n * 8 + at.column(e);
        differentiate(p, b, h, first_query + column, first_key + at.row(e), check, normalizer[stage][column],
                      delta[stage][column], weights[n][e], dweights[n][e]);
      }
    add_weighted_rows<kWidth>(value_sums, weights, Tile<kWidth>{gradient_tile(stage)}, at);
    add_weighted_rows<kWidth>(key_sums, dweights, Tile<kWidth>{query_tile(stage)}, at);
  });
  const float one[2] = {1, 1};
  store_rows<kWidth>(key_sums, one, dkey, b, h, first_key, p.keys, at);
  store_rows<kWidth>(value_sums, one, dvalue, b, h, first_key, p.keys, at);
}

}  // namespace

void launch_attention_backward(const Problem& p, const Heads<Bf16>& dout, const float* log_normalizer,
                               const float* delta, const Heads<Bf16>& dquery, const Heads<Bf16>& dkey,
                               const Heads<Bf16>& dvalue, cudaStream_t stream) {
  const Saved saved{log_normalizer, delta};
  int vector = std::min({vector_of(p.query), vector_of(p.key), vector_of(p.value), vector_of(dout)});
  if (p.position != nullptr) vector = std::min(vector, vector_of(position_rows(p)));
  const auto launch = [&](auto width, auto position) {
    constexpr int kWidth = width.value;
    constexpr bool kPosition = position.value;
    constexpr int kKeyStep = kPosition ? kColumnBandStep : kBackwardStep;
    constexpr std::size_t kQueryBytes = backward_bytes<kWidth, kBackwardStep>(kPosition, kRowSkewFloats<kBackwardStep>);
    constexpr std::size_t kKeyBytes = backward_bytes<kWidth, kKeyStep>(kPosition, kColumnSkewFloats<kKeyStep>);
    allow_shared_memory(query_gradient<kWidth, kPosition>, kQueryBytes);
    allow_shared_memory(key_value_gradient<kWidth, kPosition>, kKeyBytes);
    query_gradient<kWidth, kPosition>
        <<<row_blocks(p, p.queries), kBlockThreads, kQueryBytes, stream>>>(p, dout, saved, dquery, vector);
    key_value_gradient<kWidth, kPosition>
        <<<row_blocks(p, p.keys), kBlockThreads, kKeyBytes, stream>>>(p, dout, saved, dkey, dvalue, vector);
  };
  with_padded_width(p.query.width, [&](auto width) {
    if (p.position == nullptr) launch(width, std::false_type{});
    else launch(width, std::true_type{});
  });
  check_launch("attention_backward");
}

}  // namespace switchyard::cuda
