#pragma once

#include <climits>

#include "cuda/expert_matmul.cuh"

namespace switchyard::cuda {

/// Pairs that a block of a weight gradient multiplies at a time.
constexpr int kStepPairs = 64;

/// How the blocks of a weight gradient divide the work. One expert may have most of the pairs and another none, and
/// only the device knows. So the pairs of all experts, in steps of kStepPairs, are cut into `groups` equal shares,
/// wherever the cuts fall. dweight[expert] is cut into tiles; the `lanes` blocks of a group take the tiles in turn and
/// walk through their group's share for each. Blocks that read the same rows thus do so at about the same time.
///
/// What a share holds of one expert is a part. Where it is all that the expert has, the block writes the gradient; else
/// it leaves its sums in `partial`, and sum_parts adds them up, part after part, so that results do not vary.
struct WorkDivision {
  const std::int32_t* offsets;
  int experts, inner, outer;
  int tile_rows, tile_columns;
  int groups, lanes;
  float* partial;  // [groups, 2, tiles, tile_rows, tile_columns]; null with a single group

  __host__ __device__ int tiles_across() const { return (outer + tile_columns - 1) / tile_columns; }
  __host__ __device__ int tiles() const { return (inner + tile_rows - 1) / tile_rows * tiles_across(); }
  /// An expert without pairs has a step as well, of nothing, in which its gradient is written.
  __device__ int steps_of(int expert) const {
    return max(1, (offsets[expert + 1] - offsets[expert] + kStepPairs - 1) / kStepPairs);
  }
  __device__ int share_begin(int group, int total_steps) const {
    return min(total_steps, group * ((total_steps + groups - 1) / groups));
  }
  /// Only the first and the last part of a share can be partial: two slots per group.
  __device__ float* slot(int group, bool first_of_share, int tile) const {
    return partial +
           ((group * 2 + !first_of_share) * static_cast<std::int64_t>(tiles()) + tile) * (tile_rows * tile_columns);
  }
};

/// The number of the expert that has a step, and its first step.
struct ExpertSteps {
  int expert, begin;
};

/// Finds the expert of a step; {experts, number of all steps} beyond the last. A warp together.
__device__ inline ExpertSteps find_expert(const WorkDivision& work, int step) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int first = 0; first < work.experts; first += 32) {
    const int own = first + lane < work.experts ? work.steps_of(first + lane) : 0;
    const int sum = warp_running_sum(own);
    const unsigned reached = __ballot_sync(0xffffffffu, before + sum > step);
    if (reached != 0) {
      const int owner = __ffs(reached) - 1;
      return {first + owner, before + __shfl_sync(0xffffffffu, sum - own, owner)};
    }
    before += __shfl_sync(0xffffffffu, sum, 31);
  }
  return {work.experts, before};
}

/// What a share holds of one expert's pairs. partial: where the sums go, or null if these are all the expert's pairs.
struct Part {
  int expert, first_pair, pairs, steps;
  float* partial;
};

/// Calls f(part) for each part of a group's share, in order. Every warp of a block comes to the same parts.
template <class F>
__device__ void for_each_part(const WorkDivision& work, int group, int tile, F f) {
  const int total = find_expert(work, INT_MAX).begin;
  const int begin = work.share_begin(group, total), end = work.share_begin(group + 1, total);
  ExpertSteps at = find_expert(work, begin);
  for (int step = begin; step < end;) {
    const int expert_end = at.begin + work.steps_of(at.expert);
    const int steps = min(end, expert_end) - step;
    const int first_pair = work.offsets[at.expert] + (step - at.begin) * kStepPairs;
    const bool whole = step == at.begin && step + steps == expert_end;
    f(Part{at.expert, first_pair, min(steps * kStepPairs, work.offsets[at.expert + 1] - first_pair), steps,
           whole ? nullptr : work.slot(group, step == begin, tile)});
    step += steps;
    at = {at.expert + 1, expert_end};
  }
}

/// Chooses groups and lanes for so many blocks, and allocates `partial`, which the caller keeps until all is launched.
WorkDivision divide_work(const WeightGradient<__nv_bfloat16>& gradient, int experts, int tile_rows, int tile_columns,
                         int blocks, Device device, Tensor& partial);
/// Adds up the parts of the experts that are in several shares. Goes after the kernel that left them.
void sum_parts(const WorkDivision& work, __nv_bfloat16* dweight, cudaStream_t stream);

/// Computes the gradient on Hopper's tensor cores; does nothing and returns false where the GPU or the alignment of
/// rows (8 bytes) rules that out.
bool launch_weight_gradient_hopper(const WeightGradient<__nv_bfloat16>& gradient, int experts, Device device);

}  // namespace switchyard::cuda
