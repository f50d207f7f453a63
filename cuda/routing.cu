// Top-k selection and the routing plan, with nothing read by the host.
//
// The plan is a stable counting sort of P choices by expert. Choices are cut into chunks, a warp each:
//   1. count: cursors[e][chunk] = choices of expert e in the chunk; lanes with the same expert find each other by
//   match.
//   2. scan: a warp per expert turns its row of cursors into exclusive sums; one block turns the totals into offsets.
//   3. place: each warp walks its chunk again and writes both permutations.
// Order within an expert is the order of choices, so the result does not vary.

#include "core/kernels/copy.h"
#include "core/kernels/routing.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kChunk = 256;
constexpr int kWarpsPerBlock = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class A>
struct Candidate {
  A score;
  int expert, level;  // level 0: excluded, 1: NaN, 2: ordinary; -1: none

  __device__ bool better_than(const Candidate& other) const {
    if (level != other.level) return level > other.level;
    return score > other.score || (score == other.score && expert < other.expert);
  }
};

/// A warp per row. Round j takes the best candidate that is worse than the one of round j - 1, so no marks are kept.
template <class D>
__global__ void top_k_rows(const D* scores, const bool* excluded, std::int64_t rows, int experts, int k,
                           std::int32_t* indices) {
  using A = compute_t<D>;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  Candidate<A> last{};
  for (int j = 0; j < k; ++j) {
    Candidate<A> best{-A(INFINITY), experts, -1};
    for (int e = lane; e < experts; e += 32) {
      const A score = load(scores + row * experts + e);
      const bool nan = score != score;
      const int level = excluded && excluded[row * experts + e] ? 0 : nan ? 1 : 2;
      const Candidate<A> next{nan ? -A(INFINITY) : score, e, level};
      if ((j == 0 || last.better_than(next)) && next.better_than(best)) best = next;
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      const Candidate<A> other{__shfl_xor_sync(kAllLanes, best.score, distance),
                               __shfl_xor_sync(kAllLanes, best.expert, distance),
                               __shfl_xor_sync(kAllLanes, best.level, distance)};
      if (other.better_than(best)) best = other;
    }
    if (lane == 0) indices[row * k + j] = best.expert;
    last = best;
  }
}

/// Where choices come from: indices, or a mask of all experts.
struct Choices {
  const std::int32_t* indices;
  const bool* mask;
  std::int64_t count;
  int slots, choices, experts_per_slot;

  /// Expert of a choice, or -1 where it is not taken.
  __device__ int expert(std::int64_t choice) const {
    if (choice >= count) return -1;
    const std::int64_t row = choice / choices;
    const int first = static_cast<int>(row % slots) * experts_per_slot;
    if (mask) return mask[choice] ? first + static_cast<int>(choice % choices) : -1;
    const int index = indices[choice];
    return index >= 0 && index < experts_per_slot ? first + index : -1;
  }
};

__device__ inline unsigned lanes_below() { return (1u << (threadIdx.x % 32)) - 1; }

__global__ void count_chunks(Choices choices, int chunks, int chunk_size, std::int32_t* cursors) {
  const int chunk = blockIdx.x * kWarpsPerBlock + threadIdx.x / 32;
  if (chunk >= chunks) return;
  for (int i = threadIdx.x % 32; i < chunk_size; i += 32) {
    const int expert = choices.expert(static_cast<std::int64_t>(chunk) * chunk_size + i);
    const unsigned same = __match_any_sync(kAllLanes, expert);
    if (expert >= 0 && (same & lanes_below()) == 0)
      cursors[static_cast<std::int64_t>(expert) * chunks + chunk] += __popc(same);
    __syncwarp();
  }
}

/// Exclusive sums along each expert's chunks; totals[expert].
__global__ void scan_chunks(int experts, int chunks, std::int32_t* cursors, std::int32_t* totals) {
  const int expert = blockIdx.x * kWarpsPerBlock + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (expert >= experts) return;
  std::int32_t* row = cursors + static_cast<std::int64_t>(expert) * chunks;
  std::int32_t before = 0;
  for (int first = 0; first < chunks; first += 32) {
    const std::int32_t own = first + lane < chunks ? row[first + lane] : 0;
    std::int32_t sum = own;
    for (int distance = 1; distance < 32; distance *= 2) {
      const std::int32_t other = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (first + lane < chunks) row[first + lane] = before + sum - own;
    before += __shfl_sync(kAllLanes, sum, 31);
  }
  if (lane == 0) totals[expert] = before;
}

/// offsets[0 .. experts] from totals, by one warp.
__global__ void scan_experts(int experts, const std::int32_t* totals, std::int32_t* offsets) {
  const int lane = threadIdx.x;
  std::int32_t before = 0;
  for (int first = 0; first < experts; first += 32) {
    const std::int32_t own = first + lane < experts ? totals[first + lane] : 0;
    std::int32_t sum = own;
    for (int distance = 1; distance < 32; distance *= 2) {
      const std::int32_t other = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (first + lane < experts) offsets[first + lane] = before + sum - own;
    before += __shfl_sync(kAllLanes, sum, 31);
  }
  if (lane == 0) offsets[experts] = before;
}

__global__ void place_chunks(Choices choices, int chunks, int chunk_size, std::int32_t* cursors,
                             const std::int32_t* offsets, std::int32_t* pair_to_choice, std::int32_t* choice_to_pair) {
  const int chunk = blockIdx.x * kWarpsPerBlock + threadIdx.x / 32;
  if (chunk >= chunks) return;
  for (int i = threadIdx.x % 32; i < chunk_size; i += 32) {
    const std::int64_t choice = static_cast<std::int64_t>(chunk) * chunk_size + i;
    const int expert = choices.expert(choice);
    const unsigned same = __match_any_sync(kAllLanes, expert);
    const int rank = __popc(same & lanes_below());
    std::int32_t pair = -1;
    if (expert >= 0) {
      std::int32_t* cursor = cursors + static_cast<std::int64_t>(expert) * chunks + chunk;
      pair = offsets[expert] + *cursor + rank;
      pair_to_choice[pair] = static_cast<std::int32_t>(choice);
    }
    __syncwarp();
    if (expert >= 0 && rank == 0) cursors[static_cast<std::int64_t>(expert) * chunks + chunk] += __popc(same);
    __syncwarp();
    if (choice < choices.count) choice_to_pair[choice] = pair;
  }
}

}  // namespace

void top_k(const Tensor& scores, const Tensor& excluded, const Tensor& indices) {
  const std::int64_t rows = scores.size(0);
  dispatch_floating(scores.dtype(), "top_k", [&](auto tag) {
    using T = typename decltype(tag)::type;
    top_k_rows<<<blocks_for(rows, kWarpsPerBlock), kWarpsPerBlock * 32, 0, stream_of(scores)>>>(
        pointer<T>(scores), excluded.defined() ? excluded.data<bool>() : nullptr, rows,
        static_cast<int>(scores.size(1)), static_cast<int>(indices.size(1)), indices.data<std::int32_t>());
  });
  check_launch("top_k");
}

void build_routing_plan(const Tensor& indices, const Tensor& mask, const ops::RoutingPlan& plan) {
  const Context& ctx = context(plan.expert_offsets.device());
  const std::int64_t count = plan.max_pairs();
  const int experts = static_cast<int>(plan.experts);
  if (count == 0) return fill(plan.expert_offsets, 0);
  // With many experts (an embedding's gradient sorts by word) chunks grow, so that the cursors stay a few megabytes.
  std::int64_t chunk_size = kChunk;
  while ((count / chunk_size + 1) * experts > (1 << 22) && chunk_size < count) chunk_size *= 2;
  const int chunks = static_cast<int>((count + chunk_size - 1) / chunk_size);
  const Tensor cursors = Tensor::zeros({experts, chunks}, DType::i32, plan.expert_offsets.device());
  const Tensor totals = Tensor::empty({experts}, DType::i32, plan.expert_offsets.device());
  const Choices choices{indices.defined() ? indices.data<std::int32_t>() : nullptr,
                        mask.defined() ? mask.data<bool>() : nullptr,
                        count,
                        static_cast<int>(plan.slots),
                        static_cast<int>(plan.choices),
                        experts / static_cast<int>(plan.slots)};
  const int threads = kWarpsPerBlock * 32;
  auto* cursor = cursors.data<std::int32_t>();
  auto* offsets = plan.expert_offsets.data<std::int32_t>();
  if (mask.defined())  // entries beyond the true number of pairs
    check_cuda(cudaMemsetAsync(plan.pair_to_choice.raw(), 0xff, plan.pair_to_choice.bytes(), ctx.stream),
               "routing plan");
  count_chunks<<<blocks_for(chunks, kWarpsPerBlock), threads, 0, ctx.stream>>>(choices, chunks,
                                                                               static_cast<int>(chunk_size), cursor);
  scan_chunks<<<blocks_for(experts, kWarpsPerBlock), threads, 0, ctx.stream>>>(experts, chunks, cursor,
                                                                               totals.data<std::int32_t>());
  scan_experts<<<1, 32, 0, ctx.stream>>>(experts, totals.data<std::int32_t>(), offsets);
  place_chunks<<<blocks_for(chunks, kWarpsPerBlock), threads, 0, ctx.stream>>>(
      choices, chunks, static_cast<int>(chunk_size), cursor, offsets, plan.pair_to_choice.data<std::int32_t>(),
      plan.choice_to_pair.data<std::int32_t>());
  check_launch("build_routing_plan");
}

}  // namespace switchyard::cuda
