#include "cuda/expert_weight_gradient.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kWidth = 4, kQuadsPerThread = 4;  // a thread adds up four times four neighbours

/// A block per slice of a tile and per border between two shares. It does nothing unless the border is the first one
/// inside an expert.
__global__ void __launch_bounds__(kThreads) add_parts(WorkDivision work, int slices, __nv_bfloat16* dweight) {
  const int total = find_expert(work, INT_MAX).begin;
  const int border = blockIdx.y + 1, step = work.share_begin(border, total);
  if (step == total) return;
  const ExpertSteps at = find_expert(work, step);
  if (at.begin == step || work.share_begin(border - 1, total) > at.begin) return;
  const int end = at.begin + work.steps_of(at.expert);
  const int tile = blockIdx.x / slices, slice = blockIdx.x % slices;
  float4 sums[kQuadsPerThread] = {};
  int group = border - 1;
  for (int begin = work.share_begin(group, total); begin < end; begin = work.share_begin(++group, total)) {
    const float* part = work.slot(group, begin >= at.begin, tile) + slice * (kThreads * kWidth * kQuadsPerThread);
#pragma unroll
    for (int i = 0; i < kQuadsPerThread; ++i) {
      const float4 more = *reinterpret_cast<const float4*>(part + (i * kThreads + threadIdx.x) * kWidth);
      sums[i].x += more.x, sums[i].y += more.y, sums[i].z += more.z, sums[i].w += more.w;
    }
  }
  const int first_row = tile / work.tiles_across() * work.tile_rows;
  const int first_column = tile % work.tiles_across() * work.tile_columns;
#pragma unroll
  for (int i = 0; i < kQuadsPerThread; ++i) {
    const int place = ((slice * kQuadsPerThread + i) * kThreads + threadIdx.x) * kWidth;
    const int row = first_row + place / work.tile_columns, column = first_column + place % work.tile_columns;
    if (row >= work.inner || column >= work.outer) continue;
    const float values[kWidth] = {sums[i].x, sums[i].y, sums[i].z, sums[i].w};
    __nv_bfloat16* to = dweight + (static_cast<std::int64_t>(at.expert) * work.inner + row) * work.outer + column;
    for (int n = 0; n < kWidth && column + n < work.outer; ++n) to[n] = __float2bfloat16_rn(values[n]);
  }
}

}  // namespace

WorkDivision divide_work(const WeightGradient<__nv_bfloat16>& gradient, int experts, int tile_rows, int tile_columns,
                         int blocks, Device device, Tensor& partial) {
  WorkDivision work{gradient.offsets, experts, gradient.inner, gradient.outer, tile_rows, tile_columns, 1, 1, nullptr};
  const int tiles = work.tiles();
  // A block that takes `rounds` tiles has rounds / groups of the work. More rounds may leave fewer blocks without any,
  // but read the rows more often and need more room for partial sums: they must pay.
  const int fewest = (tiles + blocks - 1) / blocks;
  double best = 2.0 * fewest;
  for (int rounds = fewest; rounds < fewest + 4; ++rounds) {
    const int lanes = (tiles + rounds - 1) / rounds, groups = blocks / lanes;
    const double time = static_cast<double>(rounds) / groups;
    if (time > 0.95 * best) continue;
    best = time;
    work.lanes = lanes;
    work.groups = groups;
  }
  if (work.groups > 1) {
    partial = Tensor::empty({work.groups, 2, tiles, tile_rows, tile_columns}, DType::f32, device);
    work.partial = pointer<float>(partial);
  }
  return work;
}

void sum_parts(const WorkDivision& work, __nv_bfloat16* dweight, cudaStream_t stream) {
  if (work.groups == 1) return;
  const int slices = work.tile_rows * work.tile_columns / (kThreads * kWidth * kQuadsPerThread);
  add_parts<<<dim3(static_cast<unsigned>(work.tiles() * slices), static_cast<unsigned>(work.groups - 1)), kThreads, 0,
              stream>>>(work, slices, dweight);
  check_launch("expert_matmul_weight_backward: sum of parts");
}

}  // namespace switchyard::cuda
