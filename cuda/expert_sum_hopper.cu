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

#include "cuda/expert_product_hopper.cuh"
#include "cuda/expert_sum_hopper.h"
#include "cuda/tensor_map.h"

namespace switchyard::cuda {
namespace {

using namespace expert_product;

constexpr int kColumns = 256, kMostGroupExperts = 6;
constexpr int kMostPatterns = 256;  // that a counting sort takes in two launches

/// How experts form groups. Pattern number g * patterns_per_group() + bits - 1 has the experts g * size + i for all
/// bits i of `bits`, which is not 0.
struct Groups {
  int experts, size;

  __host__ __device__ int count() const { return (experts + size - 1) / size; }
  __host__ __device__ int patterns_per_group() const { return (1 << size) - 1; }
  __host__ __device__ int patterns() const { return count() * patterns_per_group(); }
  __device__ int bits(int pattern) const { return pattern % patterns_per_group() + 1; }
  __device__ int first_expert(int pattern) const { return pattern / patterns_per_group() * size; }
};

struct PatternProduct {
  Groups groups;
  const Bf16* source;                  // [pairs, inner]
  const std::int32_t* choice_to_pair;  // [tokens, experts]
  const std::int32_t* offsets;         // [patterns + 1]: the rows of a pattern
  const std::int32_t* row_to_place;    // row -> token * groups + group
  int inner, outer;
  Bf16* y;  // [rows, outer]
};

/// Which pattern each token has in each group, -1 where it chooses none of the group's experts.
__global__ void find_patterns(Groups groups, const std::int32_t* choice_to_pair, std::int64_t places,
                              std::int32_t* patterns) {
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (place >= places) return;
  const int first = static_cast<int>(place % groups.count()) * groups.size;
  const std::int32_t* pairs = choice_to_pair + place / groups.count() * groups.experts + first;
  int bits = 0;
  for (int i = 0; i < min(groups.size, groups.experts - first); ++i) bits |= (pairs[i] >= 0) << i;
  patterns[place] = bits - 1;
}

struct SumShared {
  Shared<kColumns, 1> ring;
  std::int32_t pairs[2][kMostGroupExperts][kUnitRows];  // of this tile and of the one before
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other GPUs get an empty kernel, never launched

/// Calls f(tile) for all tiles of this block, dealt out in turn: blocks that run side by side share their weights.
template <class F>
__device__ void for_each_tile(const PatternProduct& p, F f) {
  for (int number = blockIdx.x;; number += gridDim.x) {
    const PairTile tile = find_tile(p.offsets, p.groups.patterns(), kUnitRows, number);
    if (tile.count == 0) return;
    f(tile);
  }
}

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

  /// A thread for each row of the tile; rows beyond the last repeat it.
  __device__ void look_up_pairs(const PairTile& tile, int bits) {
    const std::int32_t place = p.row_to_place[tile.first + min(static_cast<int>(threadIdx.x), tile.count - 1)];
    const std::int32_t* pairs = p.choice_to_pair +
                                static_cast<std::int64_t>(place / p.groups.count()) * p.groups.experts +
                                p.groups.first_expert(tile.expert);
    ++tiles;  // the other buffer may still be read
    for (; bits != 0; bits &= bits - 1) shared.pairs[tiles % 2][__ffs(bits) - 1][threadIdx.x] = pairs[__ffs(bits) - 1];
    asm volatile("bar.sync 1, %0;" ::"n"(kGroup) : "memory");
  }

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
        copy_weight(p.groups.first_expert(tile.expert) + i, k0, column, stage);
      }
      Bf16* to = shared.ring.stages[stage].rows + swizzled(first_line, vector);
#pragma unroll
      for (int n = 0; n < kUnitRows / kRowsApart; ++n) copy_async(to + n * kRowsApart * kDepth, rows[n] + k0, true);
      announce(stage, kColumns * kDepth * sizeof(Bf16));
    }
  }

  __device__ void run() {
    for_each_tile(p, [&](const PairTile& tile) {
      const int bits = p.groups.bits(tile.expert);
      look_up_pairs(tile, bits);
      for (int column = 0; column < p.outer; column += kColumns)
        for (int rest = bits; rest != 0; rest &= rest - 1) copy_expert(tile, __ffs(rest) - 1, column);
    });
    end();
  }
};

/// A multiplying warpgroup's 64 rows of one tile and 256 columns.
template <Major kWeight>
__device__ inline void multiply_pattern(const PatternProduct& p, const Where& tile, Shared<kColumns, 1>& ring,
                                        int& step) {
  const int warpgroup = threadIdx.x / kGroup - 1, first_row = warpgroup * 64 + threadIdx.x / 32 % 4 * 16;
  const int steps = __popc(p.groups.bits(tile.expert)) * p.inner / kDepth;
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
    pattern_product(PatternProduct p, const __grid_constant__ CUtensorMap weight) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<SumShared*>(memory);
  auto& ring = shared.ring;
  if (threadIdx.x < kStages) {
    init_barrier(&ring.full[threadIdx.x], kGroup + 1);
    init_barrier(&ring.empty[threadIdx.x], 2 * kGroup / 32);
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
      if (tile.count == 0) return;
      multiply_pattern<kWeight>(p, tile, ring, step);
    }
  }
#endif
}

/// The largest groups whose patterns are few enough, and have tokens enough to fill a tile each.
Groups groups_for(const ops::RoutingPlan& plan) {
  Groups groups{static_cast<int>(plan.experts), std::min(kMostGroupExperts, static_cast<int>(plan.experts))};
  const auto too_many = [&] {
    return groups.patterns() > kMostPatterns || groups.patterns_per_group() * kUnitRows > plan.tokens;
  };
  while (groups.size > 1 && too_many()) --groups.size;
  return groups;
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
         !plan.choice_to_expert.defined() && plan.tokens >= kUnitRows && x.size(1) % kDepth == 0 &&
         weight.size(2) % kVector == 0 && copyable(x, x.size(1)) && copyable(weight, line) &&
         weight.stride(0) % kVector == 0;
}

PatternSums pattern_sums(const Tensor& x, const Tensor& weight, const ops::RoutingPlan& plan) {
  const Context& ctx = context(x.device());
  const Groups groups = groups_for(plan);
  const std::int64_t places = plan.tokens * groups.count(), inner = weight.size(1), outer = weight.size(2);
  const Tensor patterns = Tensor::empty({plan.tokens, groups.count(), 1}, DType::i32, x.device());
  const auto* choice_to_pair = plan.choice_to_pair.data<std::int32_t>();
  find_patterns<<<blocks_for(places, kThreads), kThreads, 0, ctx.stream>>>(groups, choice_to_pair, places,
                                                                           patterns.data<std::int32_t>());
  PatternSums sums{ops::routing_plan(patterns, groups.patterns_per_group()),
                   Tensor::empty({places, outer}, x.dtype(), x.device())};
  const PatternProduct product{groups,
                               pointer<bfloat16>(x),
                               choice_to_pair,
                               sums.patterns.expert_offsets.data<std::int32_t>(),
                               sums.patterns.pair_to_choice.data<std::int32_t>(),
                               static_cast<int>(inner),
                               static_cast<int>(outer),
                               pointer<bfloat16>(sums.rows)};
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
