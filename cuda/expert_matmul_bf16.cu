// Expert products on the tensor cores, bf16 in, fp32 sums.
//
// A block of 8 warps makes a 128 x 128 tile in steps of 32 along the inner size; a warp holds 32 x 64 of it in 2 x 4
// fragments. Two stages in shared memory: while one is multiplied, the next is on its way through registers, where rows
// are gathered, edges filled with zeros and gates applied. Rows in shared memory are padded by 16 bytes against bank
// conflicts.

#include <mma.h>

#include "cuda/expert_matmul.cuh"

namespace switchyard::cuda {
namespace {

namespace wmma = nvcuda::wmma;
using Bf16 = __nv_bfloat16;

constexpr int kRows = kTensorCoreRows, kColumns = 128, kDepth = 32, kWarps = 8, kBlockThreads = kWarps * 32;
constexpr int kVector = 8;                // bf16 values in 16 bytes
constexpr int kDeep = kDepth + kVector;   // padded row of a tile stored along the depth
constexpr int kWide = kColumns + kVector; // padded row of a tile stored along rows or columns
constexpr int kStage = 128 * kDeep;       // elements: the larger of the two tile forms
static_assert(kStage >= kDepth * kWide && kRows == kColumns);
constexpr int kVectorsPerThread = 128 * kDepth / kVector / kBlockThreads;

using Packed = Vector<Bf16, kVector>;

/// Eight values from row[first ...], zeros from `limit` on; one access where `wide` says that rows are aligned.
__device__ inline Packed load_packed(const Bf16* row, int first, int limit, bool wide) {
  if (row != nullptr && wide && first + kVector <= limit) return *reinterpret_cast<const Packed*>(row + first);
  Packed values;
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    values.values[i] = row != nullptr && first + i < limit ? row[first + i] : __float2bfloat16_rn(0.0f);
  return values;
}

/// A tile of 128 lines along the depth, or of kDepth lines along 128 rows or columns.
enum class Along { depth, wide };

template <Along along>
struct TileLoader {
  Packed held[kVectorsPerThread];

  /// f(line, first) gives eight values of a line.
  template <class F>
  __device__ void fetch(F f) {
    constexpr int kPerLine = (along == Along::depth ? kDepth : 128) / kVector;
#pragma unroll
    for (int n = 0; n < kVectorsPerThread; ++n) {
      const int i = n * kBlockThreads + threadIdx.x;
      held[n] = f(i / kPerLine, i % kPerLine * kVector);
    }
  }
  __device__ void store(Bf16* tile) const {
    constexpr int kPerLine = (along == Along::depth ? kDepth : 128) / kVector;
    constexpr int kPitch = along == Along::depth ? kDeep : kWide;
#pragma unroll
    for (int n = 0; n < kVectorsPerThread; ++n) {
      const int i = n * kBlockThreads + threadIdx.x;
      *reinterpret_cast<Packed*>(tile + i / kPerLine * kPitch + i % kPerLine * kVector) = held[n];
    }
  }
};

/// The sums of one warp, and how they are multiplied and handed out. kLeft says whether the left tile is stored along the
/// depth (rows of the operand) or along its rows (a transposed operand); kRight likewise for the right tile.
template <Along kLeft, Along kRight>
struct WarpTile {
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[2][4];

  __device__ WarpTile() {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) wmma::fill_fragment(sums[i][j], 0.0f);
  }
  static __device__ int first_row() { return threadIdx.x / 32 / 2 * 32; }
  static __device__ int first_column() { return threadIdx.x / 32 % 2 * 64; }

  __device__ void multiply(const Bf16* left, const Bf16* right) {
    using LeftLayout = std::conditional_t<kLeft == Along::depth, wmma::row_major, wmma::col_major>;
    using RightLayout = std::conditional_t<kRight == Along::depth, wmma::col_major, wmma::row_major>;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, Bf16, LeftLayout> a[2];
    wmma::fragment<wmma::matrix_b, 16, 16, 16, Bf16, RightLayout> b[4];
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = first_row() + i * 16;
        if constexpr (kLeft == Along::depth) wmma::load_matrix_sync(a[i], left + row * kDeep + k, kDeep);
        else wmma::load_matrix_sync(a[i], left + k * kWide + row, kWide);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = first_column() + j * 16;
        if constexpr (kRight == Along::depth) wmma::load_matrix_sync(b[j], right + column * kDeep + k, kDeep);
        else wmma::load_matrix_sync(b[j], right + k * kWide + column, kWide);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) wmma::mma_sync(sums[i][j], a[i], b[j], sums[i][j]);
    }
  }

  /// Calls f(row, column, sum) for every element; `scratch` is 256 floats of this warp's own.
  template <class F>
  __device__ void for_each(float* scratch, F f) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        wmma::store_matrix_sync(scratch, sums[i][j], 16, wmma::mem_row_major);
        __syncwarp();
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const int at = n * 32 + lane;
          f(first_row() + i * 16 + at / 16, first_column() + j * 16 + at % 16, scratch[at]);
        }
        __syncwarp();
      }
  }
};

/// The loop along the depth that both kernels share: fetch_left and fetch_right fill the loaders from depth k on.
template <Along kLeft, Along kRight, class FetchLeft, class FetchRight>
__device__ void multiply_along(WarpTile<kLeft, kRight>& tile, Bf16* shared, int depth, FetchLeft fetch_left,
                               FetchRight fetch_right) {
  TileLoader<kLeft> left;
  TileLoader<kRight> right;
  const auto fetch = [&](int k) {
    fetch_left(left, k);
    fetch_right(right, k);
  };
  if (depth <= 0) return;
  fetch(0);
  for (int k = 0, stage = 0; k < depth; k += kDepth, stage ^= 1) {
    Bf16* left_tile = shared + stage * 2 * kStage;
    Bf16* right_tile = left_tile + kStage;
    left.store(left_tile);
    right.store(right_tile);
    __syncthreads();
    if (k + kDepth < depth) fetch(k + kDepth);
    tile.multiply(left_tile, right_tile);
    // The other stage is free: all warps passed the barrier above after multiplying it.
  }
}

template <Along kRight>
__global__ void __launch_bounds__(kBlockThreads) pair_product(PairProduct<Bf16> p, bool wide_source, bool wide_weight) {
  extern __shared__ __align__(16) Bf16 shared[];
  __shared__ std::int64_t rows[kRows];
  const PairTile where = find_tile(p.offsets, p.experts, kRows, blockIdx.y);
  if (where.count == 0) return;
  const int first_column = blockIdx.x * kColumns;
  const Bf16* weight = p.weight + where.expert * p.weight_stride_expert;
  if (threadIdx.x < kRows)
    rows[threadIdx.x] = threadIdx.x < where.count ? p.source_rows.row(where.first + threadIdx.x) * p.inner : -1;
  __syncthreads();
  WarpTile<Along::depth, kRight> tile;
  multiply_along(
      tile, shared, p.inner,
      [&](auto& loader, int k0) {
        loader.fetch([&](int line, int first) {
          return load_packed(rows[line] < 0 ? nullptr : p.source + rows[line], k0 + first, p.inner, wide_source);
        });
      },
      [&](auto& loader, int k0) {
        loader.fetch([&](int line, int first) {
          if constexpr (kRight == Along::depth) {  // weight with stride 1 along the inner size
            const int column = first_column + line;
            return load_packed(column < p.outer ? weight + column * p.weight_stride_outer : nullptr, k0 + first, p.inner,
                               wide_weight);
          } else {
            const int k = k0 + line;
            return load_packed(k < p.inner ? weight + k * p.weight_stride_inner : nullptr, first_column + first, p.outer,
                               wide_weight);
          }
        });
      });
  __syncthreads();  // the stages become scratch
  float* scratch = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * 256;
  tile.for_each(scratch, [&](int row, int column, float sum) {
    const int pair = where.first + row;
    column += first_column;
    if (row < where.count && column < p.outer)
      p.y[static_cast<std::int64_t>(pair) * p.outer + column] = p.finish(sum, where.expert, pair, column);
  });
}

__global__ void __launch_bounds__(kBlockThreads) weight_gradient(WeightGradient<Bf16> g, bool wide_x, bool wide_dy) {
  extern __shared__ __align__(16) Bf16 shared[];
  const int expert = blockIdx.z, first_row = blockIdx.y * kRows, first_column = blockIdx.x * kColumns;
  const int begin = g.offsets[expert], count = g.offsets[expert + 1] - begin;
  WarpTile<Along::wide, Along::wide> tile;
  multiply_along(
      tile, shared, count,
      [&](auto& loader, int k0) {
        loader.fetch([&](int line, int first) {
          const int k = k0 + line;
          return load_packed(k < count ? g.x + g.x_rows.row(begin + k) * g.inner : nullptr, first_row + first, g.inner,
                             wide_x);
        });
      },
      [&](auto& loader, int k0) {
        loader.fetch([&](int line, int first) {
          const int k = k0 + line;
          Packed values = load_packed(k < count ? g.dy + g.dy_rows.row(begin + k) * g.outer : nullptr,
                                      first_column + first, g.outer, wide_dy);
          if (g.gates && k < count) {
            const float gate = g.gate(begin + k);
#pragma unroll
            for (int i = 0; i < kVector; ++i) values.values[i] = convert<Bf16>(gate * load(&values.values[i]));
          }
          return values;
        });
      });
  __syncthreads();
  float* scratch = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * 256;
  tile.for_each(scratch, [&](int row, int column, float sum) {
    row += first_row;
    column += first_column;
    if (row < g.inner && column < g.outer)
      g.dweight[(static_cast<std::int64_t>(expert) * g.inner + row) * g.outer + column] = convert<Bf16>(sum);
  });
}

constexpr std::size_t kSharedBytes = 4 * kStage * sizeof(Bf16);

bool is_wide(const void* base, std::int64_t row_elements) {
  return reinterpret_cast<std::uintptr_t>(base) % 16 == 0 && row_elements % kVector == 0;
}

}  // namespace

void launch_pair_product(const PairProduct<Bf16>& p, std::int64_t tiles, cudaStream_t stream) {
  // Tiles of one expert's rows are neighbours in y and blocks of one tile neighbours in x, so rows are gathered while
  // they are in the second-level cache. The grid's y is limited to 65,535.
  check(tiles <= 65535, "expert_matmul: ", tiles, " tiles of ", kRows, " pairs, a launch takes at most 65535");
  const dim3 grid(blocks_for(p.outer, kColumns), static_cast<unsigned>(tiles));
  const bool wide_source = is_wide(p.source, p.inner);
  const bool columns = p.weight_stride_inner == 1 && p.weight_stride_outer != 1;
  const bool wide_weight = is_wide(p.weight, columns ? p.weight_stride_outer : p.weight_stride_inner) &&
                           p.weight_stride_expert % kVector == 0;
  const auto kernel = columns ? pair_product<Along::depth> : pair_product<Along::wide>;
  allow_shared_memory(kernel, kSharedBytes);
  kernel<<<grid, kBlockThreads, kSharedBytes, stream>>>(p, wide_source, wide_weight);
  check_launch("expert_matmul");
}

void launch_weight_gradient(const WeightGradient<Bf16>& g, int experts, cudaStream_t stream) {
  const dim3 grid(blocks_for(g.outer, kColumns), blocks_for(g.inner, kRows), static_cast<unsigned>(experts));
  allow_shared_memory(weight_gradient, kSharedBytes);
  weight_gradient<<<grid, kBlockThreads, kSharedBytes, stream>>>(g, is_wide(g.x, g.inner), is_wide(g.dy, g.outer));
  check_launch("expert_matmul_weight_backward");
}

}  // namespace switchyard::cuda
