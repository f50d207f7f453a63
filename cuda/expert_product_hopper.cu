// Expert products in bf16 on Hopper: rows gathered by one warpgroup, multiplied by two others with wgmma.
//
// A block stays on its multiprocessor and makes one tile after another: up to 128 kBlocks pairs of one expert by
// kColumns columns. Warpgroup 0 gathers rows with cp.async and has the copy engine bring the weight, 64 of the inner
// size a step, into a ring of kStages stages; it runs ahead of the products, also into the next tile. Warpgroups 1 and
// 2 own every other 64 rows. A barrier per stage says that it is full, another that it is free again.
//
// What a tile costs is the rows fetched from the second-level cache: (rows + columns) x inner for 2 x rows x columns x
// inner operations. So tiles are 128 x 256 or 256 x 128, the most that the registers of two warpgroups can sum.

#include "cuda/expert_product_hopper.cuh"
#include "cuda/tensor_map.h"

namespace switchyard::cuda {
namespace {

using namespace expert_product;

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other GPUs get an empty kernel, never launched

/// A warp's 16 rows of a tile on their way to y. Each step is a loop of its own over the sums: tests inside one loop
/// would cost more than the products where the inner size is small.
template <int kColumns>
struct Rows16 {
  const PairProduct<Bf16>& p;
  const Where& tile;
  const Bias<kColumns>& bias;
  float (&sums)[kColumns / 2];
  int first_row;  // of the tile

  const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
  const int rows = tile.count - first_row, first_pair = tile.first + first_row;

  /// Calls f(row of the 16, column of y, sum, sum of the next column) for all sums of this lane.
  template <class F>
  __device__ void for_each_pair(F f) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        f(group + half * 8, tile.column + n * 8 + member * 2, sums[n * 4 + half * 2], sums[n * 4 + half * 2 + 1]);
  }

  __device__ void add_bias() {
#pragma unroll
    for (int i = 0; i < kColumns / 2; i += 2) {
      const float2 values = __bfloat1622float2(bias.values[i / 4]);
      sums[i] += values.x;
      sums[i + 1] += values.y;
    }
  }

  __device__ void apply_relu() {
    for_each_pair([](int, int, float& first, float& second) {
      first = apply_unary<ops::Activation::relu>(first);
      second = apply_unary<ops::Activation::relu>(second);
    });
  }

  /// The parts of input gradients that need the input: p.dots and p.through_relu.
  __device__ void combine_with_input() {
    float dots[2] = {};
    // What lies outside the tile reads some other element: no test keeps loads from being under way together. Sums of
    // columns outside are 0, rows outside are not stored.
    const Bf16* x_rows[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      x_rows[half] =
          p.x + static_cast<std::int64_t>(tile.first + min(first_row + group + half * 8, tile.count - 1)) * p.outer;
    for_each_pair([&](int row, int column, float& first, float& second) {
      const auto* from = reinterpret_cast<const __nv_bfloat162*>(x_rows[row / 8] + min(column, p.outer - 2));
      const float2 x = __bfloat1622float2(__ldg(from));
      dots[row / 8] += x.x * first + x.y * second;
      if (p.through_relu) {
        first = x.x > 0.0f ? first : 0.0f;
        second = x.y > 0.0f ? second : 0.0f;
      }
    });
    if (p.dots == nullptr) return;
    const int tiles = (p.outer + kColumns - 1) / kColumns;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for (int distance = 1; distance < 4; distance *= 2)
        dots[half] += __shfl_xor_sync(0xffffffffu, dots[half], distance);
      if (member == 0 && group + half * 8 < rows)
        p.dots[static_cast<std::int64_t>(first_pair + group + half * 8) * tiles + tile.column / kColumns] = dots[half];
    }
  }

  __device__ void apply_gates() {
    float gates[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (group + half * 8 < rows)
        gates[half] = load(p.gates + p.source_rows.pair_to_choice[first_pair + group + half * 8]);
    for_each_pair([&](int row, int, float& first, float& second) {
      first *= gates[row / 8];
      second *= gates[row / 8];
    });
  }

  __device__ void finish(Bf16* results) {
    if (p.bias) add_bias();
    if (p.activation == ops::Activation::relu) apply_relu();
    if (p.x) combine_with_input();
    if (p.gates) apply_gates();
    store_rows<kColumns>(sums, results, p.y + static_cast<std::int64_t>(first_pair) * p.outer, rows, tile.column,
                         p.outer);
  }
};

/// A multiplying warpgroup's part of one tile: every other block of 64 rows.
template <int kColumns, int kBlocks, Major kWeight>
__device__ inline void multiply(const PairProduct<Bf16>& p, const Where& tile, Shared<kColumns, kBlocks>& shared,
                                int& step) {
  const int group = threadIdx.x / kGroup - 1, warp = threadIdx.x / 32 % 4;
  const Bf16* bias =
      p.bias == nullptr ? nullptr : p.bias + static_cast<std::int64_t>(tile.expert) * p.outer + tile.column;
  const Bias<kColumns> own_bias(bias, p.outer - tile.column);
  float sums[kBlocks][kColumns / 2];
  accumulate<kColumns, kBlocks, kWeight>(shared, (p.inner + kDepth - 1) / kDepth, step, sums);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block)
    Rows16<kColumns>{p, tile, own_bias, sums[block], block * kUnitRows + group * 64 + warp * 16}.finish(
        shared.results[threadIdx.x / 32 - kGroup / 32]);
}

#endif

template <int kColumns, int kBlocks, Major kWeight>
__global__ void __launch_bounds__(kBlockThreads, 1)
    pair_product_hopper(PairProduct<Bf16> p, const __grid_constant__ Copies copies, bool in_turn) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<kColumns, kBlocks>*>(memory);
  if (threadIdx.x < kStages) {
    init_barrier(&shared.full[threadIdx.x], kGroup + 1);
    init_barrier(&shared.empty[threadIdx.x], 2 * kGroup / 32 * kWarpArrivals);
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x < kGroup) {
    shrink_registers<88>();
    const Schedule schedule{p.offsets, p.experts, (p.outer + kColumns - 1) / kColumns, in_turn};
    Gather<kColumns, kBlocks, kWeight>{p, copies, shared}.run(schedule);
  } else {
    grow_registers<208>();
    for (int step = 0;;) {
      wait_barrier(&shared.full[step % kStages], step / kStages % 2);
      const Where tile = shared.where[step % kStages];
      __syncwarp();  // one lane releases the stage for all, which have read its tile
      if (tile.count == 0) return;
      multiply<kColumns, kBlocks, kWeight>(p, tile, shared, step);
    }
  }
#endif
}

bool weight_along_depth(const PairProduct<Bf16>& p) { return p.weight_stride_inner == 1 && p.weight_stride_outer != 1; }

/// Whether rows of `stride` elements, read `width` wide from `base` on, can be copied in vectors of `bytes`.
bool copyable(const void* base, std::int64_t stride, std::int64_t width, int bytes) {
  return reinterpret_cast<std::uintptr_t>(base) % bytes == 0 && stride * 2 % bytes == 0 && width * 2 % bytes == 0;
}

/// The same for both operands.
bool fits(const PairProduct<Bf16>& p, int bytes) {
  const bool along_depth = weight_along_depth(p);
  return copyable(p.source, p.inner, p.inner, bytes) && p.weight_stride_expert * 2 % bytes == 0 &&
         copyable(p.weight, along_depth ? p.weight_stride_outer : p.weight_stride_inner,
                  along_depth ? p.inner : p.outer, bytes);
}

template <int kColumns, int kBlocks>
void launch(const PairProduct<Bf16>& p, std::int64_t pairs, const Context& ctx) {
  const bool along_depth = weight_along_depth(p), aligned = fits(p, 16);
  constexpr std::size_t kBytes = sizeof(Shared<kColumns, kBlocks>);
  Copies copies{{}, {}, aligned, p.source_rows.choices_per_row == 0};
  if (aligned && along_depth)
    copies.weight =
        tensor_map(p.weight, {p.inner, p.outer, p.experts}, {p.weight_stride_outer, p.weight_stride_expert}, kColumns);
  else if (aligned)
    copies.weight =
        tensor_map(p.weight, {p.outer, p.inner, p.experts}, {p.weight_stride_inner, p.weight_stride_expert}, kDepth);
  if (aligned && copies.contiguous)
    copies.source = tensor_map(p.source, {p.inner, pairs, 1}, {p.inner, p.inner * pairs}, kUnitRows);
  // Half of the second-level cache for the weights; the other half holds rows.
  const std::int64_t weight_bytes = static_cast<std::int64_t>(p.experts) * p.inner * p.outer * sizeof(Bf16);
  const bool in_turn = weight_bytes > ctx.cache_bytes / 2;
  const auto run = [&](auto kernel) {
    allow_shared_memory(kernel, kBytes);
    kernel<<<ctx.multiprocessors, kBlockThreads, kBytes, ctx.stream>>>(p, copies, in_turn);
  };
  if (along_depth) run(pair_product_hopper<kColumns, kBlocks, Major::depth>);
  else run(pair_product_hopper<kColumns, kBlocks, Major::wide>);
  check_launch("expert_matmul");
}

}  // namespace

int hopper_tile_columns(const PairProduct<Bf16>& p, const Context& ctx) {
  using ops::Activation;
  const bool usable = ctx.hopper && fits(p, 8) && copyable(p.y, p.outer, p.outer, 8) &&
                      copyable(p.bias, p.outer, p.outer, 4) &&
                      (p.activation == Activation::identity || p.activation == Activation::relu);
  if (!usable) return 0;
  // The tile that wastes the fewest columns; among equals the widest, which gathers the rows least often.
  int best = 256;
  for (const int columns : {128, 112, 80, 64})
    if (blocks_for(p.outer, columns) * columns < blocks_for(p.outer, best) * best) best = columns;
  return best;
}

void launch_pair_product_hopper(const PairProduct<Bf16>& p, std::int64_t pairs, const Context& ctx) {
  switch (hopper_tile_columns(p, ctx)) {
    case 256: return launch<256, 1>(p, pairs, ctx);
    case 128: return launch<128, 2>(p, pairs, ctx);
    case 112: return launch<112, 2>(p, pairs, ctx);
    case 80: return launch<80, 2>(p, pairs, ctx);
    default: return launch<64, 2>(p, pairs, ctx);
  }
}

}  // namespace switchyard::cuda
