// Expert products on the tensor cores, bf16 in, fp32 sums.
//
// A block of 8 warps makes a 128 x 128 tile in steps of 64 along the inner size; a warp holds 32 x 64 of it. Three
// stages of shared memory are filled by asynchronous copies that gather the rows, two steps ahead of the products.
// Tiles lie in one of two forms, so that every operand is copied along its contiguous axis:
//   depth: 128 lines of 64 along the inner size (rows of x; a weight that is contiguous along its inner size)
//   wide:  64 lines of 128 across it            (other weights; both operands of the weight gradient)
// Lines are padded by 16 bytes, so that eight of them fall into different banks.

#include "cuda/device/mma.cuh"
#include "cuda/expert_weight_gradient.cuh"

namespace switchyard::cuda {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kSide = kTensorCoreRows, kDepth = kStepPairs, kBlockThreads = 256, kStages = 3;
constexpr int kVector = 8;  // bf16 values in 16 bytes
constexpr int kVectorsPerThread = kSide * kDepth / kVector / kBlockThreads;

enum class Form { depth, wide };

template <Form form>
struct Tile {
  static constexpr int kLine = form == Form::depth ? kDepth : kSide;
  static constexpr int kPitch = kLine + kVector;
  static constexpr int kElements = (form == Form::depth ? kSide : kDepth) * kPitch;

  /// The n-th vector that this thread copies: its line, and where in the line it begins.
  static __device__ int line(int n) { return (n * kBlockThreads + threadIdx.x) / (kLine / kVector); }
  static __device__ int column(int n) { return (n * kBlockThreads + threadIdx.x) % (kLine / kVector) * kVector; }
};

/// Out of line, like the rarer activations below: inlined, they make the loop outgrow the instruction cache, which
/// costs far more than the calls.
__device__ __noinline__ void copy_unaligned(Bf16* to, const Bf16* row, int first, int limit) {
  for (int i = 0; i < kVector; ++i)
    to[i] = row != nullptr && first + i < limit ? row[first + i] : __float2bfloat16_rn(0.0f);
}

/// Copies eight values row[first ...] to shared memory, with zeros from `limit` on or where row is null. Asynchronous
/// where `wide` says that rows are aligned.
__device__ inline void copy_vector(Bf16* to, const Bf16* row, int first, int limit, bool wide, const Bf16* readable) {
  if (wide) {
    const bool valid = row != nullptr && first < limit;  // aligned rows end on a multiple of eight
    copy_async(to, valid ? row + first : readable, valid);
    return;
  }
  copy_unaligned(to, row, first, limit);
}

/// One warp's 32 x 64 sums, in blocks of 16 x 8.
template <Form kLeft, Form kRight>
struct WarpSums {
  float sums[2][8][4] = {};

  static __device__ int lane() { return threadIdx.x % 32; }
  static __device__ int first_row() { return threadIdx.x / 64 * 32; }
  static __device__ int first_column() { return threadIdx.x / 32 % 2 * 64; }

  /// Adds the product of two tiles. gates, if not null, scale the lines of a wide right tile.
  __device__ void multiply(const Bf16* left, const Bf16* right, const Bf16* gates) {
    constexpr int kLeftPitch = Tile<kLeft>::kPitch, kRightPitch = Tile<kRight>::kPitch;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = first_row() + i * 16;
        if constexpr (kLeft == Form::depth)
          load_blocks<false>(a[i], left + (row + lane() % 16) * kLeftPitch + k + lane() / 16 * 8);
        else load_blocks<true>(a[i], left + (k + lane() % 8 + lane() / 16 * 8) * kLeftPitch + row + lane() / 8 % 2 * 8);
      }
      __nv_bfloat162 low_gates, high_gates;
      if (gates) {
        low_gates = *reinterpret_cast<const __nv_bfloat162*>(gates + k + lane() % 4 * 2);
        high_gates = *reinterpret_cast<const __nv_bfloat162*>(gates + k + 8 + lane() % 4 * 2);
      }
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        const int column = first_column() + n * 8;
        std::uint32_t b[4];
        if constexpr (kRight == Form::depth)
          load_blocks<false>(b, right + (column + lane() / 16 * 8 + lane() % 8) * kRightPitch + k + lane() / 8 % 2 * 8);
        else load_blocks<true>(b, right + (k + lane() % 16) * kRightPitch + column + lane() / 16 * 8);
        if (gates)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            __nv_bfloat162& pair = *reinterpret_cast<__nv_bfloat162*>(&b[i]);
            pair = __hmul2(pair, i % 2 ? high_gates : low_gates);
          }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_blocks(sums[i][n], a[i], b[0], b[1]);
          multiply_blocks(sums[i][n + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  /// Calls f(row, column, sum, sum of the next column) for every pair of neighbouring columns.
  template <class F>
  __device__ void for_each_pair(F f) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < 8; ++n)
          f(first_row() + i * 16 + half * 8 + lane() / 4, first_column() + n * 8 + lane() % 4 * 2, sums[i][n][half * 2],
            sums[i][n][half * 2 + 1]);
  }
};

/// Writes the block's 128 x 128 results, in shared memory with lines of kResultPitch, to rows of `width` elements.
constexpr int kResultPitch = kSide + kVector;
__device__ inline void store_tile(const Bf16* tile, Bf16* to, int rows, int first_column, int width) {
  const bool wide = width % kVector == 0 && reinterpret_cast<std::uintptr_t>(to) % 16 == 0;
  for (int i = threadIdx.x; i < rows * (kSide / kVector); i += kBlockThreads) {
    const int row = i / (kSide / kVector), column = i % (kSide / kVector) * kVector, at = first_column + column;
    const Bf16* from = tile + row * kResultPitch + column;
    Bf16* target = to + static_cast<std::int64_t>(row) * width + at;
    if (wide && at < width) {
      *reinterpret_cast<Vector<Bf16, kVector>*>(target) = *reinterpret_cast<const Vector<Bf16, kVector>*>(from);
    } else {
      for (int n = 0; n < kVector && at + n < width; ++n) target[n] = from[n];
    }
  }
}

template <Form kLeft, Form kRight>
constexpr int kStageElements = Tile<kLeft>::kElements + Tile<kRight>::kElements;

/// The loop along the depth: issue(step, left, right) starts the copies of a step, multiply(step, left, right) uses
/// them.
template <Form kLeft, Form kRight, class Issue, class Multiply>
__device__ void pipeline(Bf16* shared, int steps, Issue issue, Multiply multiply) {
  const auto left = [&](int step) { return shared + step % kStages * kStageElements<kLeft, kRight>; };
  const auto right = [&](int step) { return left(step) + Tile<kLeft>::kElements; };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) issue(step, left(step), right(step));
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // this step's tiles are there; the stage to be filled next has been used by all
    const int next = step + kStages - 1;
    if (next < steps) issue(next, left(next), right(next));
    commit_copies();
    multiply(step, left(step), right(step));
  }
}

template <Form kRight>
__global__ void __launch_bounds__(kBlockThreads, 2)
    pair_product(PairProduct<Bf16> p, bool wide_source, bool wide_weight) {
  extern __shared__ __align__(16) Bf16 shared[];
  const PairTile where = find_tile(p.offsets, p.experts, kSide, blockIdx.y);
  if (where.count == 0) return;
  const int first_column = blockIdx.x * kSide;
  const Bf16* weight = p.weight + where.expert * p.weight_stride_expert;
  using Left = Tile<Form::depth>;
  using Right = Tile<kRight>;
  const Bf16* rows[kVectorsPerThread];
#pragma unroll
  for (int n = 0; n < kVectorsPerThread; ++n) {
    const int line = Left::line(n);
    rows[n] = line < where.count ? p.source + p.source_rows.row(where.first + line) * p.inner : nullptr;
  }
  WarpSums<Form::depth, kRight> sums;
  pipeline<Form::depth, kRight>(
      shared, (p.inner + kDepth - 1) / kDepth,
      [&](int step, Bf16* left, Bf16* right) {
        const int k0 = step * kDepth;
#pragma unroll
        for (int n = 0; n < kVectorsPerThread; ++n)
          copy_vector(left + Left::line(n) * Left::kPitch + Left::column(n), rows[n], k0 + Left::column(n), p.inner,
                      wide_source, p.source);
#pragma unroll
        for (int n = 0; n < kVectorsPerThread; ++n) {
          const int line = Right::line(n), column = Right::column(n);
          Bf16* to = right + line * Right::kPitch + column;
          if constexpr (kRight == Form::depth) {
            const int outer = first_column + line;
            copy_vector(to, outer < p.outer ? weight + outer * p.weight_stride_outer : nullptr, k0 + column, p.inner,
                        wide_weight, p.source);
          } else {
            const int k = k0 + line;
            copy_vector(to, k < p.inner ? weight + k * p.weight_stride_inner : nullptr, first_column + column, p.outer,
                        wide_weight, p.source);
          }
        }
      },
      [&](int, const Bf16* left, const Bf16* right) { sums.multiply(left, right, nullptr); });
  wait_for_copies<0>();
  __syncthreads();  // the stages become the tile of results
  sums.for_each_pair([&](int row, int column, float first, float second) {
    const int pair = where.first + row, at = first_column + column;
    Bf16* to = shared + row * kResultPitch + column;
    if (row < where.count && at < p.outer) to[0] = p.finish(first, where.expert, pair, at);
    if (row < where.count && at + 1 < p.outer) to[1] = p.finish(second, where.expert, pair, at + 1);
  });
  __syncthreads();
  store_tile(shared, p.y + static_cast<std::int64_t>(where.first) * p.outer, where.count, first_column, p.outer);
}

/// A tile of dweight: the sum over one part's pairs.
__device__ inline void add_part(const WeightGradient<Bf16>& g, const WorkDivision& work, int tile, const Part& part,
                                bool wide_x, bool wide_dy) {
  extern __shared__ __align__(16) Bf16 shared[];
  __shared__ __align__(16) Bf16 gates[kStages][kDepth];
  const int first_row = tile / work.tiles_across() * kSide, first_column = tile % work.tiles_across() * kSide;
  using Wide = Tile<Form::wide>;
  WarpSums<Form::wide, Form::wide> sums;
  // The rows of a step are looked up a step before its copies start, so that the copies need not wait for them.
  std::int64_t x_row[kVectorsPerThread], dy_row[kVectorsPerThread];
  Bf16 gate = __float2bfloat16_rn(0.0f);
  const auto look_up = [&](int step) {
#pragma unroll
    for (int n = 0; n < kVectorsPerThread; ++n) {
      const int k = step * kDepth + Wide::line(n);
      x_row[n] = k < part.pairs ? g.x_rows.row(part.first_pair + k) : -1;
      dy_row[n] = k < part.pairs ? g.dy_rows.row(part.first_pair + k) : -1;
    }
    const int k = step * kDepth + threadIdx.x;
    if (g.gates && threadIdx.x < kDepth)
      gate = k < part.pairs ? g.gates[g.x_rows.pair_to_choice[part.first_pair + k]] : __float2bfloat16_rn(0.0f);
  };
  look_up(0);
  __syncthreads();  // shared memory is free: all have finished the part before
  pipeline<Form::wide, Form::wide>(
      shared, part.steps,
      [&](int step, Bf16* left, Bf16* right) {
#pragma unroll
        for (int n = 0; n < kVectorsPerThread; ++n) {
          const int offset = Wide::line(n) * Wide::kPitch + Wide::column(n);
          copy_vector(left + offset, x_row[n] < 0 ? nullptr : g.x + x_row[n] * g.inner, first_row + Wide::column(n),
                      g.inner, wide_x, g.x);
          copy_vector(right + offset, dy_row[n] < 0 ? nullptr : g.dy + dy_row[n] * g.outer,
                      first_column + Wide::column(n), g.outer, wide_dy, g.x);
        }
        if (g.gates && threadIdx.x < kDepth) gates[step % kStages][threadIdx.x] = gate;
        look_up(step + 1);
      },
      [&](int step, const Bf16* left, const Bf16* right) {
        sums.multiply(left, right, g.gates ? gates[step % kStages] : nullptr);
      });
  if (part.partial) {
    sums.for_each_pair([&](int row, int column, float first, float second) {
      *reinterpret_cast<float2*>(part.partial + row * kSide + column) = {first, second};
    });
    return;
  }
  wait_for_copies<0>();
  __syncthreads();
  sums.for_each_pair([&](int row, int column, float first, float second) {
    *reinterpret_cast<__nv_bfloat162*>(shared + row * kResultPitch + column) = __floats2bfloat162_rn(first, second);
  });
  __syncthreads();
  store_tile(shared, g.dweight + (static_cast<std::int64_t>(part.expert) * g.inner + first_row) * g.outer,
             min(kSide, g.inner - first_row), first_column, g.outer);
}

/// The tiles and the parts that WorkDivision gives to this block.
__global__ void __launch_bounds__(kBlockThreads, 2)
    weight_gradient(WeightGradient<Bf16> g, WorkDivision work, bool wide_x, bool wide_dy) {
  for (int tile = blockIdx.x % work.lanes; tile < work.tiles(); tile += work.lanes)
    for_each_part(work, blockIdx.x / work.lanes, tile,
                  [&](const Part& part) { add_part(g, work, tile, part, wide_x, wide_dy); });
}

bool is_wide(const void* base, std::int64_t row_elements, std::int64_t width) {
  return reinterpret_cast<std::uintptr_t>(base) % 16 == 0 && row_elements % kVector == 0 && width % kVector == 0;
}

}  // namespace

void launch_pair_product(const PairProduct<Bf16>& p, std::int64_t tiles, cudaStream_t stream) {
  // Blocks that share a tile's rows are neighbours in x, so the rows are gathered while they are in the second-level
  // cache. The grid's y is limited to 65,535.
  check(tiles <= 65535, "expert_matmul: ", tiles, " tiles of ", kSide, " pairs, a launch takes at most 65535");
  const dim3 grid(blocks_for(p.outer, kSide), static_cast<unsigned>(tiles));
  const bool wide_source = is_wide(p.source, p.inner, p.inner);
  const bool along_depth = p.weight_stride_inner == 1 && p.weight_stride_outer != 1;
  const bool wide_weight =
      is_wide(p.weight, along_depth ? p.weight_stride_outer : p.weight_stride_inner, along_depth ? p.inner : p.outer) &&
      p.weight_stride_expert % kVector == 0;
  const auto launch = [&](auto kernel, int stage_elements) {
    const std::size_t bytes = kStages * static_cast<std::size_t>(stage_elements) * sizeof(Bf16);
    allow_shared_memory(kernel, bytes);
    kernel<<<grid, kBlockThreads, bytes, stream>>>(p, wide_source, wide_weight);
  };
  if (along_depth) launch(pair_product<Form::depth>, kStageElements<Form::depth, Form::depth>);
  else launch(pair_product<Form::wide>, kStageElements<Form::depth, Form::wide>);
  check_launch("expert_matmul");
}

void launch_weight_gradient(const WeightGradient<Bf16>& g, int experts, Device device) {
  if (launch_weight_gradient_hopper(g, experts, device)) return;
  const Context& ctx = context(device);
  Tensor partial;
  const WorkDivision work = divide_work(g, experts, kSide, kSide, 2 * ctx.multiprocessors, device, partial);
  constexpr std::size_t kBytes = kStages * kStageElements<Form::wide, Form::wide> * sizeof(Bf16);
  allow_shared_memory(weight_gradient, kBytes);
  weight_gradient<<<blocks_for(work.groups * work.lanes, 1), kBlockThreads, kBytes, ctx.stream>>>(
      g, work, is_wide(g.x, g.inner, g.inner), is_wide(g.dy, g.outer, g.outer));
  check_launch("expert_matmul_weight_backward");
  sum_parts(work, g.dweight, ctx.stream);
}

}  // namespace switchyard::cuda
