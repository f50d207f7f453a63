// The gradient of Transformer-XL's position keys on the tensor cores. A block owns 64 position rows of a head, and
// walks over the queries of its batches: query i meets row n with key n + i + c, so a band of keys and values passes
// by. Blocks that own the same rows for different batches leave partial sums, which a second kernel adds up in their
// order.

#include "cuda/attention_bf16_backward.cuh"

namespace switchyard::cuda {
namespace {

struct PositionTask {
  Problem p;
  Heads<Bf16> dout;
  Saved saved;
  float* partial;  // [parts, R, H, d]
  int parts, vector;
};

constexpr int kStep = kColumnBandStep;

template <int kWidth>
constexpr std::size_t kBytes = ((kRows + 4 * kStep) * kPitch<kWidth> + 2 * BandRing<kWidth, kStep>::kElements) *
                                   sizeof(Bf16) +
                               4 * kColumnSkewFloats<kStep> * sizeof(float);

/// Adds what the queries of batch b give. Rows of a tile are position rows, columns queries.
template <int kWidth>
__device__ void add_batch(const PositionTask& task, int b, int first_row, int h, Bf16* shared,
                          float (&sums)[kWidth / 8][4]) {
  using Ring = BandRing<kWidth, kStep>;
  constexpr int kStepElements = kStep * kPitch<kWidth>;
  __shared__ float normalizer[2][kStep], delta[2][kStep];
  const Problem& p = task.p;
  const Lane at;
  const Tile<kWidth> position_rows_of_warp{shared + at.warp * kWarpRows * kPitch<kWidth>};
  Bf16* passing = shared + kRows * kPitch<kWidth>;
  const auto query_tile = [&](int stage) { return passing + 2 * stage * kStepElements; };
  const auto gradient_tile = [&](int stage) { return query_tile(stage) + kStepElements; };
  // Key of row r and query i: first_row + r + i + shift. Queries whose keys all lie outside are left out.
  const int shift = static_cast<int>(p.query_offset - p.position_zero);
  const int begin = max(0, -(first_row + kRows - 1 + shift)), end = min(p.queries, p.keys - first_row - shift);
  const Ring keys{passing + 4 * kStepElements, p.key, b, h, first_row + begin + shift, 1, p.keys, task.vector};
  const Ring values{keys.memory + Ring::kElements, p.value, b, h, keys.first, 1, p.keys, task.vector};
  float* scratch = values.scratch() + at.warp * kColumnSkewFloats<kStep>;

  const auto issue = [&](int first_query, int stage) {
    keys.load_step((first_query - begin) / kStep);
    values.load_step((first_query - begin) / kStep);
    load_rows<kWidth, kStep>(query_tile(stage), p.query, b, h, first_query, p.queries, task.vector);
    load_rows<kWidth, kStep>(gradient_tile(stage), task.dout, b, h, first_query, p.queries, task.vector);
    task.saved.load<kStep>(p, b, h, first_query, normalizer[stage], delta[stage]);
  };
  two_stages(begin, end, kStep, issue, [&](int first_query, int stage) {
    const int step = (first_query - begin) / kStep;
    const Tile<kWidth> query{query_tile(stage)};
    float weights[kStep / 8][4], dweights[kStep / 8][4] = {};
    row_by_row<kWidth>(weights, position_rows_of_warp, query, at);
    add_column_band<kWidth, kStep, true>(weights, keys.rows(step, at.warp * kWarpRows), query, scratch, at);
    add_column_band<kWidth, kStep, true>(dweights, values.rows(step, at.warp * kWarpRows),
                                         Tile<kWidth>{gradient_tile(stage)}, scratch, at);
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = n * 8 + at.column(e), i = first_query + column;
        differentiate(p, b, h, i, first_row + at.row(e) + i + shift, true, normalizer[stage][column],
                      delta[stage][column], weights[n][e], dweights[n][e]);
      }
    add_weighted_rows<kWidth>(sums, dweights, query, at);
  });
}

template <int kWidth>
__global__ void __launch_bounds__(kBlockThreads) position_gradient(PositionTask task) {
  extern __shared__ __align__(16) Bf16 shared[];
  const Problem& p = task.p;
  const Lane at;
  const int first_row = static_cast<int>(blockIdx.x) * kRows, h = blockIdx.y, part = blockIdx.z;
  load_rows<kWidth, kRows>(shared, position_rows(p), 0, h, first_row, static_cast<int>(p.positions), task.vector);
  float sums[kWidth / 8][4] = {};
  const bool seen = !p.causal || first_row <= p.position_zero;
  for (int b = part; seen && b < p.batch; b += task.parts) add_batch<kWidth>(task, b, first_row, h, shared, sums);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + at.row(half * 2);
    if (row >= p.positions) continue;
    float* to = task.partial + ((part * p.positions + row) * p.heads + h) * p.query.width;
#pragma unroll
    for (int c = 0; c < kWidth / 8; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = c * 8 + at.column(e);
        if (column < p.query.width) to[column] = sums[c][half * 2 + e];
      }
  }
}

__global__ void add_parts(const float* partial, int parts, std::int64_t count, Bf16* out) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int part = 0; part < parts; ++part) sum += partial[part * count + i];
  out[i] = __float2bfloat16_rn(sum);
}

}  // namespace

void launch_position_gradient(const Problem& p, const Heads<Bf16>& dout, const float* log_normalizer,
                              const float* delta, Bf16* dposition, Device device) {
  const Context& ctx = context(device);
  const unsigned tiles = blocks_for(p.positions, kRows);
  const int wanted = static_cast<int>(blocks_for(8 * ctx.multiprocessors, static_cast<std::int64_t>(tiles) * p.heads));
  const int parts = std::min(p.batch, wanted);
  const std::int64_t count = p.positions * p.heads * p.query.width;
  const Tensor partial = Tensor::empty({parts, count}, DType::f32, device);
  const int vector = std::min(
      {vector_of(p.query), vector_of(p.key), vector_of(p.value), vector_of(dout), vector_of(position_rows(p))});
  const PositionTask task{p, dout, {log_normalizer, delta}, partial.data<float>(), parts, vector};
  with_padded_width(p.query.width, [&](auto width) {
    const auto kernel = position_gradient<width.value>;
    allow_shared_memory(kernel, kBytes<width.value>);
    kernel<<<dim3(tiles, static_cast<unsigned>(p.heads), static_cast<unsigned>(parts)), kBlockThreads,
             kBytes<width.value>, ctx.stream>>>(task);
  });
  add_parts<<<blocks_for(count, kThreads), kThreads, 0, ctx.stream>>>(task.partial, parts, count, dposition);
  check_launch("attention_backward");
}

}  // namespace switchyard::cuda
