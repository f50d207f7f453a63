// Weight gradients of expert products with Hopper's matrix instructions (sm_90a).
//
// dweight[e] = sum over pairs of x[row]^T (gate dy[row]): a product whose depth is the expert's pairs. A block makes
// tiles of 128 x 256, in steps of 64 pairs, and does for each tile the parts that WorkDivision gives it. Four warps
// gather the rows of a step by asynchronous copies into one of four stages of shared memory; they run ahead, also into
// the next part. Two warpgroups multiply, 64 x 256 each. A line of a stage is a pair, so both operands are "wide":
//
//   narrow [64 pairs, 128 columns]   2 panels; read into registers as A, where the gates scale it
//   broad  [64 pairs, 256 columns]   4 panels; read by the matrix units as B
//
// Either of x and dy can be the narrow one, whichever leaves less of the tiles empty. Where dy is narrow the tile is of
// the transposed gradient, and is transposed in registers when it is written.

#include "cuda/device/mma.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/expert_weight_gradient.cuh"

namespace switchyard::cuda {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kNarrow = 128, kBroad = 256, kStages = 4;
constexpr int kPanelValues = kStepPairs * kLineValues;
constexpr int kCopyWarps = 4, kMultiplyWarps = 8, kBlockThreads = (kCopyWarps + kMultiplyWarps) * 32;
constexpr int kVector = 8;  // bf16 values in 16 bytes

/// One of x and dy.
struct Operand {
  const Bf16* values;
  RowMap rows;
  int width;
  bool aligned;  // to 16 bytes, else to 8
};

struct GatheredProduct {
  Operand narrow, broad;
  const Bf16* gates;
  Bf16* dweight;
};

struct Stage {
  Bf16 narrow[kNarrow / kLineValues][kPanelValues];
  Bf16 broad[kBroad / kLineValues][kPanelValues];
};

struct Shared {
  Stage stages[kStages];
  Bf16 gates[kStages][kStepPairs];
  std::uint64_t filled[kStages], free[kStages];  // barriers
};

// Other GPUs get empty kernels, which are not launched.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kLinesPerWarp = kStepPairs / kCopyWarps, kLineBytes = kLineValues * sizeof(Bf16);

/// Where a role is in the ring of stages.
struct Ring {
  int stage = 0, parity = 0;

  __device__ void advance() {
    stage = (stage + 1) % kStages;
    if (stage == 0) parity ^= 1;
  }
};

/// Copies a warp's lines, kValues at a time. `to` is the shared address of the first line; the lane first_lane + n
/// holds the row of line n, or -1 for a line of zeros. A lane stays in its row for all panels, so that addresses cost
/// little: with one warp a scheduler that copies, its instructions are what limits the kernel.
template <int kPanels, int kValues>
__device__ void copy_lines(const Operand& from, std::uint32_t to, int first_column, int row, int first_lane) {
  constexpr int kLanes = kLineValues / kValues, kLines = 32 / kLanes;  // kLanes share a line, kLines are copied at once
  const int lane = threadIdx.x % 32, line = lane / kLanes, offset = lane % kLanes * kValues;
  const std::uint32_t start = to + sizeof(Bf16) * (swizzled(line, offset / kVector) + offset % kVector);
  const Bf16* source = from.values + first_column + offset;
  const int columns = from.width - first_column - offset;
#pragma unroll
  for (int n = 0; n < kLinesPerWarp; n += kLines) {
    const int line_row = __shfl_sync(0xffffffffu, row, first_lane + n + line);
    const Bf16* values = source + static_cast<std::int64_t>(line_row) * from.width;
    // The swizzle of a further line differs in bits that the first one's address leaves free.
    const std::uint32_t target = (start ^ (n % 8 * 16)) + n * kLineBytes;
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel)
      copy_async_to<kValues * sizeof(Bf16)>(target + panel * (kPanelValues * sizeof(Bf16)),
                                            values + panel * kLineValues,
                                            line_row >= 0 && panel * kLineValues < columns);
  }
}

/// The same for rows of any alignment that is allowed.
template <int kPanels>
__device__ void copy_rows(const Operand& from, Bf16* to, int first_column, int row, int first_lane) {
  if (from.aligned) copy_lines<kPanels, kVector>(from, shared_address(to), first_column, row, first_lane);
  else copy_lines<kPanels, kVector / 2>(from, shared_address(to), first_column, row, first_lane);
}

/// The row of a pair, or -1 where there is none, which its choice says.
__device__ inline int row_of(const RowMap& rows, int pair, int choice) {
  if (choice < 0) return -1;
  return rows.choices_per_row == 0 ? pair : choice / rows.choices_per_row;
}

/// The warps that fill the stages.
template <bool kTransposed>
__device__ void gather(const GatheredProduct& p, Shared& shared, Ring& ring, const Part& part, int first_inner,
                       int first_outer) {
  const int first_narrow = kTransposed ? first_outer : first_inner;
  const int first_broad = kTransposed ? first_inner : first_outer;
  const int lane = threadIdx.x % 32, first_line = threadIdx.x / 32 % kCopyWarps * kLinesPerWarp;
  // The lanes look up the pairs of two steps at once: choices six steps ahead and the gates they lead to four,
  // so that the copies need not wait for them.
  constexpr int kStepsAtOnce = 32 / kLinesPerWarp;
  const int first_pair = part.first_pair + first_line + lane / kLinesPerWarp * kStepPairs + lane % kLinesPerWarp;
  const int end = part.first_pair + part.pairs;
  const auto choice_of = [&](int batch) {
    const int pair = first_pair + batch * (kStepsAtOnce * kStepPairs);
    return pair < end ? p.narrow.rows.pair_to_choice[pair] : -1;
  };
  const auto gate_of = [&](int choice) {
    return p.gates != nullptr && choice >= 0 ? p.gates[choice] : __float2bfloat16_rn(0.0f);
  };
  int choice = choice_of(0), next_choice = choice_of(1), third_choice = choice_of(2);
  Bf16 gate = gate_of(choice), next_gate = gate_of(next_choice);
  for (int batch = 0; batch * kStepsAtOnce < part.steps; ++batch) {
    const int pair = first_pair + batch * (kStepsAtOnce * kStepPairs);
    const int narrow_row = row_of(p.narrow.rows, pair, choice), broad_row = row_of(p.broad.rows, pair, choice);
    const Bf16 third_gate = gate_of(third_choice);
    choice = next_choice, next_choice = third_choice, third_choice = choice_of(batch + 3);
    for (int i = 0; i < kStepsAtOnce && batch * kStepsAtOnce + i < part.steps; ++i, ring.advance()) {
      Stage& stage = shared.stages[ring.stage];
      wait_barrier(&shared.free[ring.stage], ring.parity ^ 1);
      const int lines = first_line * kLineValues, first_lane = i * kLinesPerWarp;
      copy_rows<kNarrow / kLineValues>(p.narrow, stage.narrow[0] + lines, first_narrow, narrow_row, first_lane);
      copy_rows<kBroad / kLineValues>(p.broad, stage.broad[0] + lines, first_broad, broad_row, first_lane);
      if (lane / kLinesPerWarp == i) shared.gates[ring.stage][first_line + lane % kLinesPerWarp] = gate;
      arrive_after_copies(&shared.filled[ring.stage]);
      __syncwarp();
      arrive_of_warp(&shared.filled[ring.stage], lane);  // for the gates
    }
    gate = next_gate, next_gate = third_gate;
  }
}

/// One warpgroup's 64 x 256 sums, of the transposed gradient if kTransposed.
template <bool kTransposed>
struct Sums {
  float values[kBroad / 2];

  static __device__ int lane() { return threadIdx.x % 32; }
  /// First row of this warp in the narrow operand's 128.
  static __device__ int first_row() { return threadIdx.x / 32 * 16; }

  /// Adds one stage: starts the products and does not wait for them. They use `a` until they are complete.
  __device__ void multiply(const Stage& stage, const Bf16* gates, bool accumulate, std::uint32_t (&a)[4][4]) {
    const Bf16* panel = stage.narrow[first_row() / kLineValues];
    const int line = lane() % 8 + lane() / 16 * 8, vector = first_row() % kLineValues / kVector + lane() / 8 % 2;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      load_blocks<true>(a[k], panel + swizzled(k * 16 + line, vector));
      if (gates == nullptr) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto gate = *reinterpret_cast<const __nv_bfloat162*>(gates + k * 16 + i / 2 * 8 + lane() % 4 * 2);
        auto& pair = *reinterpret_cast<__nv_bfloat162*>(&a[k][i]);
        pair = __hmul2(pair, gate);
      }
    }
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      Wgmma<kBroad>::multiply<Major::wide>(
          values, a[k], wide_operand(stage.broad[0] + k * 16 * kLineValues, kPanelValues * sizeof(Bf16)),
          accumulate || k > 0);
    wgmma_commit();
  }

  /// Leaves them as f32 in a tile of the gradient [128, 256], or [256, 128] if kTransposed.
  __device__ void store_partial(float* tile) const {
#pragma unroll
    for (int n = 0; n < kBroad / 8; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = first_row() + h * 8 + lane() / 4, column = n * 8 + lane() % 4 * 2;
        const float first = values[n * 4 + h * 2], second = values[n * 4 + h * 2 + 1];
        if constexpr (kTransposed) {
          tile[column * kNarrow + row] = first;
          tile[(column + 1) * kNarrow + row] = second;
        } else {
          *reinterpret_cast<float2*>(tile + row * kBroad + column) = {first, second};
        }
      }
  }

  /// Rounds them into the gradient [inner, outer]. Four blocks of 8 x 8 at a time: in each a lane has two neighbours of
  /// one row; four lanes exchange them so that each has a whole row of one block.
  __device__ void store(const WorkDivision& work, Bf16* gradient, int first_inner, int first_outer) const {
    const int t = lane() % 4;
#pragma unroll
    for (int blocks = 0; blocks < kBroad / 4; blocks += 4) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Blocks along the rows that are stored: across the broad side, or if transposed the two of the narrow side.
        const int n = kTransposed ? (blocks + i) / 2 : blocks / 8 * 4 + i, h = kTransposed ? i % 2 : blocks / 4 % 2;
        words[i] = pack_bf16(values[n * 4 + h * 2], values[n * 4 + h * 2 + 1]);
        if constexpr (kTransposed) words[i] = transpose_block(words[i]);
      }
      exchange(words);
      const int row = kTransposed ? (blocks + t) / 2 * 8 + lane() / 4 : first_row() + blocks / 4 % 2 * 8 + lane() / 4;
      const int column = kTransposed ? first_row() + t % 2 * 8 : (blocks / 8 * 4 + t) * 8;
      const int at = first_outer + column;
      if (first_inner + row >= work.inner || at >= work.outer) continue;
      Bf16* to = gradient + static_cast<std::int64_t>(first_inner + row) * work.outer + at;
      if (work.outer % kVector == 0) {
        *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
      } else {
        *reinterpret_cast<uint2*>(to) = {words[0], words[1]};
        if (at + 4 < work.outer) *reinterpret_cast<uint2*>(to + 4) = {words[2], words[3]};
      }
    }
  }

  /// Word j of lane t becomes word t of lane j, among four neighbouring lanes.
  static __device__ void exchange(std::uint32_t (&words)[4]) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i & distance) continue;
        const bool upper = lane() & distance;
        const std::uint32_t sent = upper ? words[i] : words[i + distance];
        const std::uint32_t received = __shfl_xor_sync(0xffffffffu, sent, distance);
        (upper ? words[i] : words[i + distance]) = received;
      }
  }
};

/// The warpgroups that multiply.
template <bool kTransposed>
__device__ void multiply_part(const GatheredProduct& p, const WorkDivision& work, Shared& shared, Ring& ring,
                              const Part& part, int first_inner, int first_outer) {
  Sums<kTransposed> sums;
  std::uint32_t a[2][4][4];  // two steps in turn: one is loaded while the products of the other go on
  int previous = -1;
  const auto release = [&] {
    __syncwarp();  // one lane releases the stage for all, which have read it
    if (previous >= 0) arrive_of_warp(&shared.free[previous], threadIdx.x % 32);
  };
  const auto multiply = [&](int step, std::uint32_t(&fragment)[4][4]) {
    wait_barrier(&shared.filled[ring.stage], ring.parity);
    fence_async_proxy();
    sums.multiply(shared.stages[ring.stage], p.gates ? shared.gates[ring.stage] : nullptr, step > 0, fragment);
    wgmma_wait<1>();
    release();
    previous = ring.stage;
    ring.advance();
  };
  for (int step = 0; step < part.steps; step += 2) {
    multiply(step, a[0]);
    if (step + 1 < part.steps) multiply(step + 1, a[1]);
  }
  wgmma_wait<0>();
  release();
  if (part.partial) return sums.store_partial(part.partial);
  sums.store(work, p.dweight + static_cast<std::int64_t>(part.expert) * work.inner * work.outer, first_inner,
             first_outer);
}

#endif

/// kTransposed: dy is the narrow operand.
template <bool kTransposed>
__global__ void __launch_bounds__(kBlockThreads, 1) weight_gradient_hopper(GatheredProduct p, WorkDivision work) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(&shared.filled[stage], kCopyWarps * (32 + kWarpArrivals));
      init_barrier(&shared.free[stage], kMultiplyWarps * kWarpArrivals);
    }
    fence_barriers();
  }
  __syncthreads();
  const auto for_each = [&](auto f) {
    for (int tile = blockIdx.x % work.lanes; tile < work.tiles(); tile += work.lanes) {
      const int inner = tile / work.tiles_across() * work.tile_rows,
                outer = tile % work.tiles_across() * work.tile_columns;
      for_each_part(work, blockIdx.x / work.lanes, tile, [&](const Part& part) { f(part, inner, outer); });
    }
  };
  Ring ring;
  if (threadIdx.x < kMultiplyWarps * 32) {
    grow_registers<224>();
    for_each([&](const Part& part, int inner, int outer) {
      multiply_part<kTransposed>(p, work, shared, ring, part, inner, outer);
    });
  } else {
    shrink_registers<56>();
    for_each([&](const Part& part, int inner, int outer) { gather<kTransposed>(p, shared, ring, part, inner, outer); });
  }
#endif
}

/// Values that a copy may take from every row at once: 8, 4, or 0 if rows are not aligned even to 8 bytes.
int aligned_values(const Bf16* base, int width) {
  for (const int values : {kVector, kVector / 2})
    if (width % values == 0 && reinterpret_cast<std::uintptr_t>(base) % (values * sizeof(Bf16)) == 0) return values;
  return 0;
}

}  // namespace

bool launch_weight_gradient_hopper(const WeightGradient<Bf16>& g, int experts, Device device) {
  const Context& ctx = context(device);
  const int x_values = aligned_values(g.x, g.inner), dy_values = aligned_values(g.dy, g.outer);
  if (!ctx.hopper || x_values == 0 || dy_values == 0) return false;
  const auto tiles = [](int narrow, int broad) { return blocks_for(narrow, kNarrow) * blocks_for(broad, kBroad); };
  const bool transposed = tiles(g.outer, g.inner) < tiles(g.inner, g.outer);
  const Operand x{g.x, g.x_rows, g.inner, x_values == kVector}, dy{g.dy, g.dy_rows, g.outer, dy_values == kVector};
  const GatheredProduct product{transposed ? dy : x, transposed ? x : dy, g.gates, g.dweight};
  Tensor partial;
  const WorkDivision work = divide_work(g, experts, transposed ? kBroad : kNarrow, transposed ? kNarrow : kBroad,
                                        ctx.multiprocessors, device, partial);
  const auto kernel = transposed ? weight_gradient_hopper<true> : weight_gradient_hopper<false>;
  allow_shared_memory(kernel, sizeof(Shared));
  kernel<<<static_cast<unsigned>(work.groups * work.lanes), kBlockThreads, sizeof(Shared), ctx.stream>>>(product, work);
  check_launch("expert_matmul_weight_backward");
  sum_parts(work, g.dweight, ctx.stream);
  return true;
}

}  // namespace switchyard::cuda
