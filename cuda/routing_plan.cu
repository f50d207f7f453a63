// The routing plan: a stable counting sort of P choices by expert, with nothing read by the host. Order within an
// expert is the order of choices, so the result does not vary.
//
// Choices are cut into chunks.
//   1. count: how many choices of each expert every chunk has.
//   2. place: a chunk's choices of an expert go behind those of all chunks before it and of all experts before that
//   one.
// With few experts a block places a chunk and sums up all counts by itself: two launches, 4 bytes read per choice each.
// With many (an embedding's gradient sorts positions by word) the sums are passes of their own and a chunk is a warp's.
// A mask of few experts has its choices in order of the experts already: a warp takes one expert, a lane one token.

#include "core/kernels/copy.h"
#include "core/kernels/routing.h"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kFewExperts = 256;
constexpr int kMostChunks = 128;  // with few experts; each is placed by a block of its own
constexpr int kBlock = 1024, kWarps = kBlock / 32;
constexpr int kSmallBlock = 256, kSmallWarps = kSmallBlock / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

/// Where choices come from: indices, or a mask of all experts.
struct Choices {
  const std::int32_t* indices;
  const bool* mask;
  std::int64_t count;
  int slots, choices, experts_per_slot;

  /// Expert of a choice, or -1 where it is not taken.
  __device__ int expert(std::int64_t choice) const {
    if (choice >= count) return -1;
    const int first = slots == 1 ? 0 : static_cast<int>(choice / choices % slots) * experts_per_slot;
    if (mask) return mask[choice] ? first + static_cast<int>(choice % choices) : -1;
    const int index = indices[choice];
    return index >= 0 && index < experts_per_slot ? first + index : -1;
  }
};

/// Where the results go.
struct Permutations {
  std::int32_t* pair_to_choice;
  std::int32_t* choice_to_pair;

  /// pair is -1 for a choice not taken.
  __device__ void write(std::int64_t choice, std::int64_t count, std::int32_t pair) const {
    if (pair >= 0) pair_to_choice[pair] = static_cast<std::int32_t>(choice);
    if (choice < count) choice_to_pair[choice] = pair;
  }
};

/// How many lanes of a warp have a choice of the same expert, and how many of them come before this one.
struct Peers {
  int count, before;
  __device__ bool first() const { return before == 0; }
};

__device__ inline Peers peers_of(int expert) {
  const unsigned lanes = __match_any_sync(kAllLanes, expert);
  return {__popc(lanes), __popc(lanes & ((1u << (threadIdx.x % 32)) - 1))};
}

/// sums[i] = values[0] + ... + values[i - 1], by one warp; values may be sums. Every lane gets the total.
__device__ inline std::int32_t running_sums(const std::int32_t* values, int count, std::int32_t* sums) {
  const int lane = threadIdx.x % 32;
  std::int32_t before = 0;
  for (int first = 0; first < count; first += 32) {
    const std::int32_t own = first + lane < count ? values[first + lane] : 0;
    const std::int32_t sum = warp_running_sum(own);
    if (first + lane < count) sums[first + lane] = before + sum - own;
    before += __shfl_sync(kAllLanes, sum, 31);
  }
  return before;
}

// Few experts.

/// counts[chunk, expert]; a block per chunk.
__global__ void __launch_bounds__(kBlock)
    count_of_blocks(Choices choices, int experts, int chunk_size, std::int32_t* counts) {
  __shared__ std::int32_t own[kFewExperts];
  for (int e = threadIdx.x; e < experts; e += kBlock) own[e] = 0;
  __syncthreads();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * chunk_size;
  for (int i = threadIdx.x; i < chunk_size; i += kBlock) {
    const int expert = choices.expert(first + i);
    const Peers peers = peers_of(expert);
    if (expert >= 0 && peers.first()) atomicAdd(own + expert, peers.count);  // of integers: any order will do
  }
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += kBlock) counts[blockIdx.x * experts + e] = own[e];
}

/// next[e] = the first pair of expert e that belongs to this block's chunk. Block 0 writes the offsets as well.
__device__ void first_pairs(const std::int32_t* counts, int experts, std::int32_t (&parts)[2][kBlock],
                            std::int32_t* next, std::int32_t* offsets) {
  // Groups of `experts` threads share the chunks: part g sums the chunks g, g + groups, ...
  const int groups = kBlock / experts, group = threadIdx.x / experts, expert = threadIdx.x % experts;
  std::int32_t before = 0, all = 0;
  if (group < groups) {
#pragma unroll 8
    for (int chunk = group; chunk < gridDim.x; chunk += groups) {
      const std::int32_t count = counts[chunk * experts + expert];
      all += count;
      if (chunk < blockIdx.x) before += count;
    }
  }
  parts[0][threadIdx.x] = before;
  parts[1][threadIdx.x] = all;
  __syncthreads();
  __shared__ std::int32_t totals[kFewExperts];
  if (threadIdx.x < experts) {
    for (int g = 1; g < groups; ++g) {
      before += parts[0][g * experts + threadIdx.x];
      all += parts[1][g * experts + threadIdx.x];
    }
    totals[threadIdx.x] = all;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const std::int32_t pairs = running_sums(totals, experts, totals);
    if (blockIdx.x == 0 && threadIdx.x == 0) offsets[experts] = pairs;
  }
  __syncthreads();
  if (threadIdx.x < experts) {
    next[threadIdx.x] = totals[threadIdx.x] + before;
    if (blockIdx.x == 0) offsets[threadIdx.x] = totals[threadIdx.x];
  }
}

__global__ void __launch_bounds__(kBlock)
    place_of_blocks(Choices choices, int experts, int chunk_size, const std::int32_t* counts, std::int32_t* offsets,
                    Permutations out) {
  __shared__ std::int32_t next[kFewExperts];
  __shared__ std::int32_t of_warps[kWarps][kFewExperts];  // first holds the parts of first_pairs
  static_assert(sizeof(of_warps) >= 2 * kBlock * sizeof(std::int32_t));
  first_pairs(counts, experts, reinterpret_cast<std::int32_t(&)[2][kBlock]>(of_warps), next, offsets);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * chunk_size;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < chunk_size; i += kBlock) {
    for (int e = lane; e < experts; e += 32) of_warps[warp][e] = 0;
    __syncwarp();
    const int expert = choices.expert(first + i);
    const Peers peers = peers_of(expert);
    if (expert >= 0 && peers.first()) of_warps[warp][expert] = peers.count;
    __syncthreads();
    if (threadIdx.x < experts) {  // where each warp's pairs of this expert begin
      std::int32_t pair = next[threadIdx.x];
      std::int32_t counts_of_warps[kWarps];  // all read before the first is written: reads need not wait for writes
#pragma unroll
      for (int w = 0; w < kWarps; ++w) counts_of_warps[w] = of_warps[w][threadIdx.x];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        of_warps[w][threadIdx.x] = pair;
        pair += counts_of_warps[w];
      }
      next[threadIdx.x] = pair;
    }
    __syncthreads();
    out.write(first + i, choices.count, expert >= 0 ? of_warps[warp][expert] + peers.before : -1);
    __syncthreads();
  }
}

// A mask of few experts. [rows, experts], a row per token, whatever the slots: choice number and expert are the same.

constexpr int kMaskRows = 256;  // placed at once
constexpr int kMostMaskChunks = 256;

__device__ inline bool taken(const bool* mask, std::int64_t rows, int experts, std::int64_t row, int expert) {
  return row < rows && mask[row * experts + expert];
}

/// counts[chunk, expert]; a block per chunk.
__global__ void __launch_bounds__(kBlock)
    count_of_mask(const bool* mask, std::int64_t rows, int experts, int chunk_rows, std::int32_t* counts) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * chunk_rows;
  for (int expert = threadIdx.x / 32; expert < experts; expert += kWarps) {
    int count = 0;
#pragma unroll 8
    for (int i = threadIdx.x % 32; i < chunk_rows; i += 32)
      count += __popc(__ballot_sync(kAllLanes, taken(mask, rows, experts, first + i, expert)));
    if (threadIdx.x % 32 == 0) counts[blockIdx.x * experts + expert] = count;
  }
}

__global__ void __launch_bounds__(kBlock)
    place_of_mask(const bool* mask, std::int64_t rows, int experts, int chunk_rows, const std::int32_t* counts,
                  std::int32_t* offsets, Permutations out) {
  __shared__ std::int32_t next[kFewExperts];
  __shared__ std::int32_t pairs[kMaskRows][kWarps + 1];  // first holds the parts of first_pairs
  static_assert(sizeof(pairs) >= 2 * kBlock * sizeof(std::int32_t));
  first_pairs(counts, experts, reinterpret_cast<std::int32_t(&)[2][kBlock]>(pairs), next, offsets);
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int part = 0; part < chunk_rows; part += kMaskRows) {
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * chunk_rows + part;
    for (int first_expert = 0; first_expert < experts; first_expert += kWarps) {
      const int expert = first_expert + warp;
      if (expert < experts) {
        std::int32_t pair = next[expert];
#pragma unroll
        for (int i = lane; i < kMaskRows; i += 32) {
          const bool own = taken(mask, rows, experts, first + i, expert);
          const unsigned all = __ballot_sync(kAllLanes, own);
          const std::int32_t place = own ? pair + __popc(all & ((1u << lane) - 1)) : -1;
          if (own) out.pair_to_choice[place] = static_cast<std::int32_t>((first + i) * experts + expert);
          pairs[i][warp] = place;
          pair += __popc(all);
        }
        __syncwarp();
        if (lane == 0) next[expert] = pair;
      }
      __syncthreads();
      if (first_expert + lane < experts)  // a warp writes rows, so that lines are written whole
        for (int i = warp; i < kMaskRows && first + i < rows; i += kWarps)
          out.choice_to_pair[(first + i) * experts + first_expert + lane] = pairs[i][lane];
      __syncthreads();
    }
  }
}

// Many experts.

__global__ void count_of_warps(Choices choices, int chunks, int chunk_size, std::int32_t* cursors) {
  const int chunk = blockIdx.x * kSmallWarps + threadIdx.x / 32;
  if (chunk >= chunks) return;
  for (int i = threadIdx.x % 32; i < chunk_size; i += 32) {
    const int expert = choices.expert(static_cast<std::int64_t>(chunk) * chunk_size + i);
    const Peers peers = peers_of(expert);
    if (expert >= 0 && peers.first()) cursors[static_cast<std::int64_t>(expert) * chunks + chunk] += peers.count;
    __syncwarp();
  }
}

/// A warp per expert turns its row of cursors into running sums; totals[expert].
__global__ void sum_of_chunks(int experts, int chunks, std::int32_t* cursors, std::int32_t* totals) {
  const int expert = blockIdx.x * kSmallWarps + threadIdx.x / 32;
  if (expert >= experts) return;
  std::int32_t* row = cursors + static_cast<std::int64_t>(expert) * chunks;
  const std::int32_t total = running_sums(row, chunks, row);
  if (threadIdx.x % 32 == 0) totals[expert] = total;
}

__global__ void sum_of_experts(int experts, const std::int32_t* totals, std::int32_t* offsets) {
  const std::int32_t pairs = running_sums(totals, experts, offsets);
  if (threadIdx.x == 0) offsets[experts] = pairs;
}

__global__ void place_of_warps(Choices choices, int chunks, int chunk_size, std::int32_t* cursors,
                               const std::int32_t* offsets, Permutations out) {
  const int chunk = blockIdx.x * kSmallWarps + threadIdx.x / 32;
  if (chunk >= chunks) return;
  for (int i = threadIdx.x % 32; i < chunk_size; i += 32) {
    const std::int64_t choice = static_cast<std::int64_t>(chunk) * chunk_size + i;
    const int expert = choices.expert(choice);
    const Peers peers = peers_of(expert);
    std::int32_t* cursor = cursors + static_cast<std::int64_t>(expert) * chunks + chunk;
    out.write(choice, choices.count, expert >= 0 ? offsets[expert] + *cursor + peers.before : -1);
    __syncwarp();
    if (expert >= 0 && peers.first()) *cursor += peers.count;
    __syncwarp();
  }
}

void sort_by_few(const Choices& choices, int experts, std::int32_t* offsets, const Permutations& out, Device device) {
  const cudaStream_t stream = context(device).stream;
  const std::int64_t share = (choices.count + kMostChunks - 1) / kMostChunks;
  const int chunk_size = static_cast<int>((share + kBlock - 1) / kBlock * kBlock);
  const unsigned chunks = blocks_for(choices.count, chunk_size);
  const Tensor counts = Tensor::empty({chunks, experts}, DType::i32, device);
  auto* count = counts.data<std::int32_t>();
  count_of_blocks<<<chunks, kBlock, 0, stream>>>(choices, experts, chunk_size, count);
  place_of_blocks<<<chunks, kBlock, 0, stream>>>(choices, experts, chunk_size, count, offsets, out);
}

void sort_mask(const Tensor& mask, int experts, std::int32_t* offsets, const Permutations& out, Device device) {
  const cudaStream_t stream = context(device).stream;
  const std::int64_t rows = mask.numel() / experts, share = (rows + kMostMaskChunks - 1) / kMostMaskChunks;
  const int chunk_rows = static_cast<int>((share + kMaskRows - 1) / kMaskRows * kMaskRows);
  const unsigned chunks = blocks_for(rows, chunk_rows);
  const Tensor counts = Tensor::empty({chunks, experts}, DType::i32, device);
  auto* count = counts.data<std::int32_t>();
  const bool* taken = mask.data<bool>();
  count_of_mask<<<chunks, kBlock, 0, stream>>>(taken, rows, experts, chunk_rows, count);
  place_of_mask<<<chunks, kBlock, 0, stream>>>(taken, rows, experts, chunk_rows, count, offsets, out);
}

void sort_by_many(const Choices& choices, int experts, std::int32_t* offsets, const Permutations& out, Device device) {
  const cudaStream_t stream = context(device).stream;
  std::int64_t size = 256;  // chunks grow with the experts, so that the cursors stay a few megabytes
  while ((choices.count / size + 1) * experts > (1 << 22) && size < choices.count) size *= 2;
  const int chunk_size = static_cast<int>(size), chunks = static_cast<int>(blocks_for(choices.count, size));
  const Tensor cursors = Tensor::zeros({experts, chunks}, DType::i32, device);
  const Tensor totals = Tensor::empty({experts}, DType::i32, device);
  auto* cursor = cursors.data<std::int32_t>();
  auto* total = totals.data<std::int32_t>();
  const unsigned by_chunk = blocks_for(chunks, kSmallWarps), by_expert = blocks_for(experts, kSmallWarps);
  count_of_warps<<<by_chunk, kSmallBlock, 0, stream>>>(choices, chunks, chunk_size, cursor);
  sum_of_chunks<<<by_expert, kSmallBlock, 0, stream>>>(experts, chunks, cursor, total);
  sum_of_experts<<<1, 32, 0, stream>>>(experts, total, offsets);
  place_of_warps<<<by_chunk, kSmallBlock, 0, stream>>>(choices, chunks, chunk_size, cursor, offsets, out);
}

}  // namespace

void build_routing_plan(const Tensor& indices, const Tensor& mask, const ops::RoutingPlan& plan) {
  const Device device = plan.expert_offsets.device();
  const int experts = static_cast<int>(plan.experts);
  if (plan.max_pairs() == 0) return fill(plan.expert_offsets, 0);
  const Choices choices{indices.defined() ? indices.data<std::int32_t>() : nullptr,
                        mask.defined() ? mask.data<bool>() : nullptr,
                        plan.max_pairs(),
                        static_cast<int>(plan.slots),
                        static_cast<int>(plan.choices),
                        experts / static_cast<int>(plan.slots)};
  if (mask.defined())  // entries beyond the true number of pairs
    check_cuda(cudaMemsetAsync(plan.pair_to_choice.raw(), 0xff, plan.pair_to_choice.bytes(), context(device).stream),
               "routing plan");
  const Permutations out{plan.pair_to_choice.data<std::int32_t>(), plan.choice_to_pair.data<std::int32_t>()};
  auto* offsets = plan.expert_offsets.data<std::int32_t>();
  if (experts > kFewExperts) sort_by_many(choices, experts, offsets, out, device);
  else if (mask.defined()) sort_mask(mask, experts, offsets, out, device);
  else sort_by_few(choices, experts, offsets, out, device);
  check_launch("build_routing_plan");
}

}  // namespace switchyard::cuda
