// Sums over the chosen experts of a mask, in bf16 on Hopper: y[token] = sum over e of source[pair of (token, e)]
// weight[e].
//
// With a row of products for every pair, most of the time goes into writing those rows and reading them again. Here
// experts are taken in groups of a few, and tokens that choose the same experts of a group, a *pattern*, lie together
// (a counting sort, the routing plan of patterns). The experts of a pattern are then one product with a longer inner
// size, whose sums stay in registers, and what is left to be summed is one row for each token and group.
//
// A block makes one tile after another: up to 128 tokens of one pattern, 256 columns at a time. For each expert of the
// pattern warpgroup 0 gathers the rows of its pairs; the rest is as in expert_product_hopper.cu.

#include <bit>

#include "cuda/expert_product_hopper.cuh"
#include "cuda/expert_sum_hopper.h"
#include "cuda/tensor_map.h"

namespace switchyard::cuda {
namespace {

using namespace expert_product;

constexpr int kColumns = 256, kMostGroupExperts = 6, kMostPatternsPerGroup = (1 << kMostGroupExperts) - 1;
constexpr int kMostPatterns = 256;  // that a counting sort takes in two launches

/// How experts form groups of `size`. The patterns of a group are its non-empty sets of experts, as bits; pattern
/// number rank * count() + g is the set `by_rank[rank]` of the group g. Larger sets have lower ranks: blocks that take
/// tiles in turn end with the small ones, at about the same time.
struct Groups {
  int experts, size;
  std::uint8_t by_rank[kMostPatternsPerGroup], rank[kMostPatternsPerGroup + 1];

  Groups(int experts_in, int size_in) : experts(experts_in), size(size_in) {
    int next = 0;
    for (int members = size; members > 0; --members)
      for (int bits = 1; bits <= patterns_per_group(); ++bits) {
        if (std::popcount(static_cast<unsigned>(bits)) != members) continue;
        by_rank[next] = static_cast<std::uint8_t>(bits);
        rank[bits] = static_cast<std::uint8_t>(next++);
      }
  }

  __host__ __device__ int count() const { return (experts + size - 1) / size; }
  __host__ __device__ int patterns_per_group() const { return (1 << size) - 1; }
  __host__ __device__ int patterns() const { return count() * patterns_per_group(); }
  __device__ int pattern(int group, int bits) const { return bits == 0 ? -1 : rank[bits] * count() + group; }
};

struct PatternProduct {
  Groups groups;
  const Bf16* source;                  // [pairs, inner]
  const std::int32_t* choice_to_pair;  // [tokens, experts]
  const std::int32_t* offsets;         // [patterns + 1]: the rows of a pattern
  const std::int32_t* row_to_place;    // row -> token * groups + group
  int inner, outer;
  Bf16* y;              // [rows, outer]
  std::int32_t* dealt;  // tiles that blocks have taken, besides the first of each
};

/// Which pattern each token has in each group, -1 where it chooses none of the group's experts.
__global__ void find_patterns(const __grid_constant__ Groups groups, const std::int32_t* choice_to_pair,
                              std::int64_t places, std::int32_t* patterns, std::int32_t* dealt) {
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (place == 0) *dealt = 0;
  if (place >= places) return;
  const int group = static_cast<int>(place % groups.count()), first = group * groups.size;
  const std::int32_t* pairs = choice_to_pair + place / groups.count() * groups.experts + first;
  int bits = 0;
  for (int i = 0; i < min(groups.size, groups.experts - first); ++i) bits |= (pairs[i] >= 0) << i;
  patterns[place] = groups.pattern(group, bits);
}

struct SumShared {
  Shared<kColumns, 1> ring;
  std::int32_t pairs[2][kMostGroupExperts][kUnitRows];  // of this tile and of the one before
  std::int32_t offsets[kMostPatterns + 1];              // the rows of a pattern
  std::int32_t tiles_before[kMostPatterns];             // the number of its first tile
  std::int32_t next[2];  // the number of the tile after this one, and after the one before
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other GPUs get an empty kernel, never launched

/// The set of a pattern, and the first expert of its group.
__device__ inline int bits_of(const Groups& groups, int pattern) { return groups.by_rank[pattern / groups.count()]; }
__device__ inline int first_expert(const Groups& groups, int pattern) { return pattern % groups.count() * groups.size; }

/// The gathering warpgroup.
template <Major kWeight>
struct PatternGather {
  const PatternProduct& p;
  const CUtensorMap& weight;
  SumShared& shared;
  int step = 0, tiles = 0;

  static constexpr int kVectors = kDepth / kVector, kRowsApart = kGroup / kVectors;

  __device__ int wait_for_stage() const {
    wait_barrier(&shared.ring.empty[step % kStages], (step / kStages + 1) % 2);
    return step % kStages;
  }

  __device__ void announce(int stage, int bytes) {
    arrive_after_copies(&shared.ring.full[stage]);
    if (threadIdx.x == 0) arrive_and_expect(&shared.ring.full[stage], bytes);
    ++step;
  }

  __device__ void end() {
    const int stage = wait_for_stage();
    if (threadIdx.x == 0) shared.ring.where[stage] = {};
    announce(stage, 0);
  }

  /// Numbers the tiles: by pattern, and by row within a pattern.
  __device__ void number_tiles() {
    const int patterns = p.groups.patterns(), lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i <= patterns; i += kGroup) shared.offsets[i] = p.offsets[i];
    synchronize();
    if (threadIdx.x < 32)
      for (int first = 0, before = 0; first < patterns; first += 32) {
        const int i = first + lane;
        const int own = i < patterns ? (shared.offsets[i + 1] - shared.offsets[i] + kUnitRows - 1) / kUnitRows : 0;
        const int sum = warp_running_sum(own);
        if (i < patterns) shared.tiles_before[i] = before + sum - own;
        before += __shfl_sync(0xffffffffu, sum, 31);
      }
    synchronize();
  }

  /// The tile of a number; count is 0 beyond the last.
  __device__ PairTile tile_at(int number) const {
    int pattern = 0;  // the last whose first tile is not beyond
    for (int end = p.groups.patterns(); end - pattern > 1;) {
      const int middle = (pattern + end) / 2;
      (shared.tiles_before[middle] <= number ? pattern : end) = middle;
    }
    const int first = shared.offsets[pattern] + (number - shared.tiles_before[pattern]) * kUnitRows;
    return {pattern, first, max(0, min(kUnitRows, shared.offsets[pattern + 1] - first))};
  }

  /// A thread's row of a tile, and its pair with each expert of the pattern. Rows beyond the last repeat it.
  struct Row {
    std::int32_t pairs[kMostGroupExperts];
  };
  __device__ Row look_up(const PairTile& tile) const {
    Row row{};
    if (tile.count == 0) return row;
    const std::int32_t place = p.row_to_place[tile.first + min(static_cast<int>(threadIdx.x), tile.count - 1)];
    const std::int32_t* pairs = p.choice_to_pair +
                                static_cast<std::int64_t>(place / p.groups.count()) * p.groups.experts +
                                first_expert(p.groups, tile.expert);
    const int bits = bits_of(p.groups, tile.expert);
#pragma unroll
    for (int i = 0; i < kMostGroupExperts; ++i)
      if (bits >> i & 1) row.pairs[i] = pairs[i];
    return row;
  }

  /// Takes the number of a tile; in thread 0.
  __device__ int take() const { return threadIdx.x == 0 ? gridDim.x + atomicAdd(p.dealt, 1) : 0; }

  static __device__ void synchronize() { asm volatile("bar.sync 1, %0;" ::"n"(kGroup) : "memory"); }

  /// One step's weight, by the copy engine.
  __device__ void copy_weight(int expert, int k0, int column, int stage) const {
    Bf16* to = shared.ring.stages[stage].weight;
    std::uint64_t* barrier = &shared.ring.full[stage];
    if constexpr (kWeight == Major::depth) {
      copy_box(to, weight, k0, column, expert, barrier);
    } else {
      for (int panel = 0; panel < kColumns / kLineValues; ++panel)
        copy_box(to + panel * kLineValues * kDepth, weight, column + panel * kLineValues, k0, expert, barrier);
    }
  }

  __device__ void copy_expert(const PairTile& tile, int i, int column) {
    const int first_line = threadIdx.x / kVectors, vector = threadIdx.x % kVectors;
    const Bf16* rows[kUnitRows / kRowsApart];
#pragma unroll
    for (int n = 0; n < kUnitRows / kRowsApart; ++n)
      rows[n] = p.source +
                static_cast<std::int64_t>(shared.pairs[tiles % 2][i][first_line + n * kRowsApart]) * p.inner +
                vector * kVector;
    for (int k0 = 0; k0 < p.inner; k0 += kDepth) {
      const int stage = wait_for_stage();
      if (threadIdx.x == 0) {
        shared.ring.where[stage] = {tile.expert, tile.first, tile.count, column};
        copy_weight(first_expert(p.groups, tile.expert) + i, k0, column, stage);
      }
      Bf16* to = shared.ring.stages[stage].rows + swizzled(first_line, vector);
#pragma unroll
      for (int n = 0; n < kUnitRows / kRowsApart; ++n) copy_async(to + n * kRowsApart * kDepth, rows[n] + k0, true);
      announce(stage, kColumns * kDepth * sizeof(Bf16));
    }
  }

  /// Takes tile after tile. Numbers and rows of the next one are looked up while a tile is copied.
  __device__ void run() {
    number_tiles();
    PairTile tile = tile_at(blockIdx.x);
    Row row = look_up(tile);
    int taken = take();
    while (tile.count != 0) {
      ++tiles;  // the other buffers may still be read
#pragma unroll
      for (int i = 0; i < kMostGroupExperts; ++i) shared.pairs[tiles % 2][i][threadIdx.x] = row.pairs[i];
      if (threadIdx.x == 0) shared.next[tiles % 2] = taken;
      synchronize();
      const PairTile next = tile_at(shared.next[tiles % 2]);
      taken = take();
      row = look_up(next);
      for (int column = 0; column < p.outer; column += kColumns)
        for (int rest = bits_of(p.groups, tile.expert); rest != 0; rest &= rest - 1)
          copy_expert(tile, __ffs(rest) - 1, column);
      tile = next;
    }
    end();
  }
};

/// A multiplying warpgroup's 64 rows of one tile and 256 columns.
template <Major kWeight>
__device__ inline void multiply_pattern(const PatternProduct& p, const Where& tile, Shared<kColumns, 1>& ring,
                                        int& step) {
  const int warpgroup = threadIdx.x / kGroup - 1, first_row = warpgroup * 64 + threadIdx.x / 32 % 4 * 16;
  const int steps = __popc(bits_of(p.groups, tile.expert)) * p.inner / kDepth;
  if (warpgroup * 64 >= tile.count) {
    for (const int end = step + steps; step < end; ++step) {
      wait_barrier(&ring.full[step % kStages], step / kStages % 2);
      release(ring, step);
    }
    return;
  }
  float sums[1][kColumns / 2];
  accumulate<kColumns, 1, kWeight>(ring, steps, step, sums);
  store_rows<kColumns>(sums[0], ring.results[threadIdx.x / 32 - kGroup / 32],
                       p.y + static_cast<std::int64_t>(tile.first + first_row) * p.outer, tile.count - first_row,
                       tile.column, p.outer);
}

#endif

template <Major kWeight>
__global__ void __launch_bounds__(kBlockThreads, 1)
    pattern_product(const __grid_constant__ PatternProduct p, const __grid_constant__ CUtensorMap weight) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<SumShared*>(memory);
  auto& ring = shared.ring;
  if (threadIdx.x < kStages) {
    init_barrier(&ring.full[threadIdx.x], kGroup + 1);
    init_barrier(&ring.empty[threadIdx.x], 2 * kGroup / 32 * kWarpArrivals);
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x < kGroup) {
    shrink_registers<88>();
    PatternGather<kWeight>{p, weight, shared}.run();
  } else {
    grow_registers<208>();
    for (int step = 0;;) {
      wait_barrier(&ring.full[step % kStages], step / kStages % 2);
      const Where tile = ring.where[step % kStages];
      __syncwarp();  // one lane releases the stage for all, which have read its tile
      if (tile.count == 0) return;
      multiply_pattern<kWeight>(p, tile, ring, step);
    }
  }
#endif
}

/// The largest groups whose patterns are few enough, and have tokens enough to fill a tile each.
Groups groups_for(const ops::RoutingPlan& plan) {
  const int experts = static_cast<int>(plan.experts);
  for (int size = std::min(kMostGroupExperts, experts); size > 1; --size) {
    const Groups groups(experts, size);
    if (groups.patterns() <= kMostPatterns && groups.patterns_per_group() * kUnitRows <= plan.tokens) return groups;
  }
  return Groups(experts, 1);
}

bool along_depth(const Tensor& weight) { return weight.stride(1) == 1 && weight.stride(2) != 1; }

/// Whether a matrix whose rows are `stride` elements apart can be copied by the copy engine.
bool copyable(const Tensor& matrix, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(matrix.raw()) % 16 == 0 && stride % kVector == 0;
}

}  // namespace

bool pattern_sums_fit(const Tensor& x, const Tensor& weight, const ops::RoutingPlan& plan) {
  const std::int64_t line = along_depth(weight) ? weight.stride(2) : weight.stride(1);
  return context(x.device()).hopper && x.dtype() == DType::bf16 && plan.slots == 1 &&
         !plan.choice_to_expert.defined() && plan.experts <= kMostPatterns && plan.tokens >= kUnitRows &&
         x.size(1) % kDepth == 0 && weight.size(2) % kVector == 0 && copyable(x, x.size(1)) && copyable(weight, line) &&
         weight.stride(0) % kVector == 0;
}

PatternSums pattern_sums(const Tensor& x, const Tensor& weight, const ops::RoutingPlan& plan) {
  const Context& ctx = context(x.device());
  const Groups groups = groups_for(plan);
  const std::int64_t places = plan.tokens * groups.count(), inner = weight.size(1), outer = weight.size(2);
  const Tensor patterns = Tensor::empty({plan.tokens, groups.count()}, DType::i32, x.device());
  const Tensor dealt = Tensor::empty({1}, DType::i32, x.device());
  const auto* choice_to_pair = plan.choice_to_pair.data<std::int32_t>();
  find_patterns<<<blocks_for(places, kThreads), kThreads, 0, ctx.stream>>>(
      groups, choice_to_pair, places, patterns.data<std::int32_t>(), dealt.data<std::int32_t>());
  PatternSums sums{ops::routing_plan(patterns, groups.patterns()),
                   Tensor::empty({places, outer}, x.dtype(), x.device())};
  const PatternProduct product{groups,
                               pointer<bfloat16>(x),
                               choice_to_pair,
                               sums.patterns.expert_offsets.data<std::int32_t>(),
                               sums.patterns.pair_to_choice.data<std::int32_t>(),
                               static_cast<int>(inner),
                               static_cast<int>(outer),
                               pointer<bfloat16>(sums.rows),
                               dealt.data<std::int32_t>()};
  const auto* from = pointer<bfloat16>(weight);
  const auto run = [&](auto kernel, const CUtensorMap& map) {
    allow_shared_memory(kernel, sizeof(SumShared));
    kernel<<<ctx.multiprocessors, kBlockThreads, sizeof(SumShared), ctx.stream>>>(product, map);
  };
  if (along_depth(weight))
    run(pattern_product<Major::depth>,
        tensor_map(from, {inner, outer, plan.experts}, {weight.stride(2), weight.stride(0)}, kColumns));
  else
    run(pattern_product<Major::wide>,
        tensor_map(from, {outer, inner, plan.experts}, {weight.stride(1), weight.stride(0)}, kDepth));
  check_launch("expert_matmul: patterns");
  return sums;
}

}  // namespace switchyard::cuda
