// Expert products in bf16 on Hopper: rows gathered by one warpgroup, multiplied by two others with wgmma.
//
// A block stays on its multiprocessor and makes one tile after another: up to 128 kBlocks pairs of one expert by
// kColumns columns. Warpgroup 0 gathers rows of x and of the weight with cp.async, 64 of the inner size a step, into a
// ring of kStages stages and runs ahead of the products, also into the next tile. Warpgroups 1 and 2 own every other 64
// rows. A barrier per stage says that it is full, another that it is free again.
//
// What a tile costs is the rows fetched from the second-level cache: (rows + columns) x inner for 2 x rows x columns x
// inner operations. So tiles are 128 x 256 or 256 x 128, the most that the registers of two warpgroups can sum.

#include "cuda/expert_product_hopper.cuh"
#include "cuda/tensor_map.h"

namespace switchyard::cuda {
namespace {

using namespace expert_product;

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other GPUs get an empty kernel, never launched

/// Stores eight values of a row from `column` on, as far as the row reaches.
__device__ inline void store_vector(Bf16* row, int column, int width, const Vector<Bf16, kVector>& values) {
  if (width % kVector == 0) {
    if (column < width) *reinterpret_cast<Vector<Bf16, kVector>*>(row + column) = values;
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; i += 4)  // widths are multiples of four
    if (column + i < width)
      *reinterpret_cast<Vector<Bf16, 4>*>(row + column + i) = reinterpret_cast<const Vector<Bf16, 4>*>(&values)[i / 4];
}

/// Finishes and stores 16 rows of a warp, 64 columns at a time by way of shared memory, so that lines are written
/// whole.
template <int kColumns>
__device__ inline void store_rows(const PairProduct<Bf16>& p, const Where& tile, int first_row,
                                  const float (&sums)[kColumns / 2], Bf16* results) {
  const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
  const int rows = tile.count - first_row, first_pair = tile.first + first_row;
  float gates[2] = {1.0f, 1.0f};
  if (p.gates)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (group + half * 8 < rows)
        gates[half] = load(p.gates + p.source_rows.pair_to_choice[first_pair + group + half * 8]);
#pragma unroll
  for (int first = 0; first < kColumns; first += kLineValues) {
    constexpr int kBlockColumns = 8;
#pragma unroll
    for (int n = 0; n < kLineValues / kBlockColumns && first + n * kBlockColumns < kColumns; ++n) {
      const int column = tile.column + first + n * kBlockColumns + member * 2;
      float bias[2] = {0.0f, 0.0f};
      if (p.bias && column < p.outer) {
        const Bf16* from = p.bias + static_cast<std::int64_t>(tile.expert) * p.outer + column;
        bias[0] = load(from);
        bias[1] = load(from + 1);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float value[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          value[i] = sums[(first / kBlockColumns + n) * 4 + half * 2 + i] + bias[i];
          if (p.activation == ops::Activation::relu) value[i] = apply_unary<ops::Activation::relu>(value[i]);
          value[i] *= gates[half];
        }
        *reinterpret_cast<std::uint32_t*>(results + swizzled(group + half * 8, n) + member * 2) =
            pack_bf16(value[0], value[1]);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i * 4 + lane / 8, vector = lane % 8, column = first + vector * kVector;
      if (row < rows && column < kColumns)
        store_vector(p.y + static_cast<std::int64_t>(first_pair + row) * p.outer, tile.column + column, p.outer,
                     *reinterpret_cast<const Vector<Bf16, kVector>*>(results + swizzled(row, vector)));
    }
    __syncwarp();
  }
}

/// A multiplying warpgroup's part of one tile: every other block of 64 rows.
template <int kColumns, int kBlocks, Major kWeight>
__device__ inline void multiply(const PairProduct<Bf16>& p, const Where& tile, Shared<kColumns, kBlocks>& shared,
                                int& step) {
  const int group = threadIdx.x / kGroup - 1, warp = threadIdx.x / 32 % 4;
  const auto release = [&](int used) {
    if (threadIdx.x % 32 == 0) arrive(&shared.empty[used % kStages]);
  };
  float sums[kBlocks][kColumns / 2];
  const int begin = step, end = step + (p.inner + kDepth - 1) / kDepth;
  for (; step < end; ++step) {
    const int stage = step % kStages;
    wait_barrier(&shared.full[stage], step / kStages % 2);
    fence_async_proxy();
    const Bf16* rows = shared.stages[stage].rows + group * 64 * kDepth;
    const Bf16* weight = shared.stages[stage].weight;
    const auto multiply_block = [&](int block) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDepth; k += 16)
        Wgmma<kColumns>::template multiply<Major::depth, kWeight>(
            sums[block], depth_operand(rows + block * kUnitRows * kDepth + k),
            kWeight == Major::depth ? depth_operand(weight + k)
                                    : wide_operand(weight + k * kLineValues, kLineValues * kDepth * sizeof(Bf16)),
            step > begin || k > 0);
    };
    multiply_block(0);
    if (kBlocks > 1 && tile.count > kUnitRows) multiply_block(kBlocks - 1);
    wgmma_commit();
    wgmma_wait<1>();
    if (step > begin) release(step - 1);
  }
  wgmma_wait<0>();
  release(step - 1);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block)
    store_rows<kColumns>(p, tile, block * kUnitRows + group * 64 + warp * 16, sums[block],
                         shared.results[threadIdx.x / 32 - 4]);
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
    init_barrier(&shared.empty[threadIdx.x], 2 * kGroup / 32);
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
      if (tile.count == 0) return;
      multiply<kColumns, kBlocks, kWeight>(p, tile, shared, step);
    }
  }
#endif
}

template <int kColumns, int kBlocks>
void launch(const PairProduct<Bf16>& p, bool along_depth, bool aligned, std::int64_t pairs, const Context& ctx) {
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

/// Whether rows of `stride` elements, read `width` wide from `base` on, can be copied in vectors of `bytes`.
bool copyable(const void* base, std::int64_t stride, std::int64_t width, int bytes) {
  return reinterpret_cast<std::uintptr_t>(base) % bytes == 0 && stride * 2 % bytes == 0 && width * 2 % bytes == 0;
}

}  // namespace

bool launch_pair_product_hopper(const PairProduct<Bf16>& p, std::int64_t pairs, const Context& ctx) {
  using ops::Activation;
  const bool along_depth = p.weight_stride_inner == 1 && p.weight_stride_outer != 1;
  const auto fits = [&](int bytes) {
    return copyable(p.source, p.inner, p.inner, bytes) &&
           copyable(p.weight, along_depth ? p.weight_stride_outer : p.weight_stride_inner,
                    along_depth ? p.inner : p.outer, bytes) &&
           copyable(p.weight, p.weight_stride_expert, 8, bytes);
  };
  const bool usable = ctx.hopper && fits(8) && copyable(p.y, p.outer, p.outer, 8) &&
                      (p.activation == Activation::identity || p.activation == Activation::relu);
  if (!usable) return false;
  const bool aligned = fits(16);
  // The tile that wastes the fewest columns; among equals the widest, which gathers the rows least often.
  const auto columns = [&](int width) { return (p.outer + width - 1) / width * width; };
  const int least = std::min({columns(256), columns(128), columns(112), columns(80), columns(64)});
  if (columns(256) == least) launch<256, 1>(p, along_depth, aligned, pairs, ctx);
  else if (columns(128) == least) launch<128, 2>(p, along_depth, aligned, pairs, ctx);
  else if (columns(112) == least) launch<112, 2>(p, along_depth, aligned, pairs, ctx);
  else if (columns(80) == least) launch<80, 2>(p, along_depth, aligned, pairs, ctx);
  else launch<64, 2>(p, along_depth, aligned, pairs, ctx);
  return true;
}

}  // namespace switchyard::cuda
