#pragma once

// The parts of the expert products on Hopper (expert_product_hopper.cu): how the operands of a tile come to shared
// memory, how they are multiplied and written.

#include "cuda/device/mma.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/expert_matmul.cuh"
#include "cuda/expert_tiles_hopper.cuh"

namespace switchyard::cuda::expert_product {

using Bf16 = __nv_bfloat16;

constexpr int kDepth = kLineValues, kStages = 4;
constexpr int kGroup = 128, kBlockThreads = 3 * kGroup;  // threads of a warpgroup, of a block
constexpr int kVector = 8;                               // bf16 values in 16 bytes

template <int kColumns, int kBlocks>
struct Shared {
  static constexpr int kRows = kUnitRows * kBlocks;
  static constexpr int kPanels = (kColumns + kLineValues - 1) / kLineValues;
  struct Stage {
    Bf16 rows[kRows * kDepth];
    Bf16 weight[kPanels * kLineValues * kDepth];
  };
  Stage stages[kStages];
  Bf16 results[2 * kGroup / 32][16 * kLineValues];  // per multiplying warp
  std::int64_t row_offsets[2][kRows];               // where the rows of this tile and of the one before begin
  Where where[kStages];                             // the tile that a stage belongs to
  std::uint64_t full[kStages], empty[kStages];
};

/// How the operands are copied.
struct Copies {
  CUtensorMap source, weight;
  bool aligned;     // in vectors of eight values and by the copy engine, else in fours
  bool contiguous;  // the source has a row per pair, the engine copies them
};

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

/// Writes a warp's 16 x kColumns sums to `rows` rows, `width` wide, from `column` on: row i begins at row_at(i). 64
/// columns at a time by way of shared memory, so that lines are written whole.
template <int kColumns, class RowAt>
__device__ inline void store_rows(const float (&sums)[kColumns / 2], Bf16* results, RowAt row_at, int rows,
                                  int first_column, int width) {
  const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
#pragma unroll
  for (int begin = 0; begin < kColumns; begin += kLineValues) {
#pragma unroll
    for (int n = 0; n < 8 && begin + n * 8 < kColumns; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* from = &sums[(begin / 8 + n) * 4 + half * 2];
        *reinterpret_cast<std::uint32_t*>(results + swizzled(group + half * 8, n) + member * 2) =
            pack_bf16(from[0], from[1]);
      }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i * 4 + lane / 8, vector = lane % 8, column = begin + vector * kVector;
      if (row < rows && column < kColumns)
        store_vector(row_at(row), first_column + column, width,
                     *reinterpret_cast<const Vector<Bf16, kVector>*>(results + swizzled(row, vector)));
    }
    __syncwarp();
  }
}

/// The same for rows of y that follow each other.
template <int kColumns>
__device__ inline void store_rows(const float (&sums)[kColumns / 2], Bf16* results, Bf16* y, int rows, int first_column,
                                  int width) {
  const auto row_at = [=](int row) { return y + static_cast<std::int64_t>(row) * width; };
  store_rows<kColumns>(sums, results, row_at, rows, first_column, width);
}

/// A lane's part of the bias of a tile: what it adds to its sums of two neighbouring columns in each eight. Read before
/// the products, which it takes as long to come.
template <int kColumns>
struct Bias {
  __nv_bfloat162 values[kColumns / 8];

  /// `bias` is that of the first column, aligned to 4 bytes, or null; `columns` of them exist from there on.
  __device__ Bias(const Bf16* bias, int columns) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      const int column = n * 8 + threadIdx.x % 4 * 2;
      values[n] = {};
      if (bias != nullptr && column < columns) values[n] = *reinterpret_cast<const __nv_bfloat162*>(bias + column);
    }
  }
};

/// A multiplying warp says that it is done with the stage of a step.
template <int kColumns, int kBlocks>
__device__ inline void release(Shared<kColumns, kBlocks>& shared, int step) {
  arrive_of_warp(&shared.empty[step % kStages], threadIdx.x % 32);
}

/// sums = the products of the next `steps` stages, by a multiplying warpgroup: every other block of 64 rows.
template <int kColumns, int kBlocks, Major kWeight>
__device__ inline void accumulate(Shared<kColumns, kBlocks>& shared, int steps, int& step,
                                  float (&sums)[kBlocks][kColumns / 2]) {
  const int group = threadIdx.x / kGroup - 1, begin = step, end = step + steps;
  for (; step < end; ++step) {
    const int stage = step % kStages;
    wait_barrier(&shared.full[stage], step / kStages % 2);
    fence_async_proxy();
    const Bf16* rows = shared.stages[stage].rows + group * 64 * kDepth;
    const Bf16* weight = shared.stages[stage].weight;
    wgmma_fence();
    // All blocks, also where a tile has pairs for the first only: a branch would make the compiler wait after each.
#pragma unroll
    for (int k = 0; k < kDepth; k += 16)
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
        Wgmma<kColumns>::template multiply<Major::depth, kWeight>(
            sums[block], depth_operand(rows + block * kUnitRows * kDepth + k),
            kWeight == Major::depth ? depth_operand(weight + k)
                                    : wide_operand(weight + k * kLineValues, kLineValues * kDepth * sizeof(Bf16)),
            step > begin || k > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (step > begin) release(shared, step - 1);
  }
  wgmma_wait<0>();
  release(shared, step - 1);
}

/// Starts copying four values, or writing four zeros where `valid` is false.
__device__ inline void copy_four(Bf16* to, const Bf16* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 8 : 0));
}

/// Copies `lines` lines of 64 values of which only every fourth is aligned, for matrices whose width is no multiple of
/// eight: from(line), or zeros where that is null; zeros from value `limit` on. `readable` stands in for what is not
/// read.
template <class From>
__device__ inline void copy_lines_by_four(Bf16* to, int lines, int limit, const Bf16* readable, From from) {
  constexpr int kPerLine = kLineValues / 4;
  const int value = threadIdx.x % kPerLine * 4;
#pragma unroll 4
  for (int line = threadIdx.x / kPerLine; line < lines; line += kGroup / kPerLine) {
    const Bf16* source = from(line);
    const bool valid = source != nullptr && value < limit;
    copy_four(to + swizzled(line, value / kVector) + value % kVector, valid ? source + value : readable, valid);
  }
}

/// The gathering warpgroup.
template <int kColumns, int kBlocks, Major kWeight>
struct Gather {
  static_assert(kUnitRows == kGroup, "a thread looks up a line of each block");

  const PairProduct<Bf16>& p;
  const Copies& copies;
  Shared<kColumns, kBlocks>& shared;
  int step = 0, tiles = 0;

  static constexpr int kRowsApart = kGroup / (kDepth / kVector);  // of the rows that one thread copies, a vector each
  static constexpr int kRowsPerThread = kUnitRows / kRowsApart;

  __device__ int wait_for_stage() const {
    wait_barrier(&shared.empty[step % kStages], (step / kStages + 1) % 2);
    return step % kStages;
  }

  /// The stage is full when all that this warpgroup started is there, and what thread 0 wrote.
  __device__ void announce(int stage, int bytes) {
    arrive_after_copies(&shared.full[stage]);
    if (threadIdx.x == 0) arrive_and_expect(&shared.full[stage], bytes);
    ++step;
  }

  __device__ void end() {
    const int stage = wait_for_stage();
    if (threadIdx.x == 0) shared.where[stage] = {};
    announce(stage, 0);
  }

  /// The weight's part of a step, by the copy engine. Returns the bytes to come.
  __device__ int copy_weight(const Where& tile, int k0, int stage) const {
    Bf16* to = shared.stages[stage].weight;
    if constexpr (kWeight == Major::depth) {
      if (threadIdx.x == 0) copy_box(to, copies.weight, k0, tile.column, tile.expert, &shared.full[stage]);
      return kColumns * kDepth * sizeof(Bf16);
    } else {
      constexpr int kPanels = Shared<kColumns, kBlocks>::kPanels;
      if (threadIdx.x == 0)
        for (int panel = 0; panel < kPanels; ++panel)
          copy_box(to + panel * kLineValues * kDepth, copies.weight, tile.column + panel * kLineValues, k0, tile.expert,
                   &shared.full[stage]);
      return kPanels * kLineValues * kDepth * sizeof(Bf16);
    }
  }

  /// Consecutive rows and the weight, both by the copy engine.
  __device__ void copy_tile(const Where& tile) {
    for (int k0 = 0; k0 < p.inner; k0 += kDepth) {
      const int stage = wait_for_stage();
      int bytes = 0;
      if (threadIdx.x == 0) {
        shared.where[stage] = tile;
        for (int unit = 0; unit * kUnitRows < tile.count; ++unit) {
          copy_box(shared.stages[stage].rows + unit * kUnitRows * kDepth, copies.source, k0,
                   tile.first + unit * kUnitRows, 0, &shared.full[stage]);
          bytes += kUnitRows * kDepth * sizeof(Bf16);
        }
      }
      announce(stage, bytes + copy_weight(tile, k0, stage));
    }
  }

  /// Asks for what leads to a tile's rows, for a line of each block: choices, or pairs where there is a row for each.
  /// Lines beyond the last repeat it.
  __device__ void look_up_choices(const Where& tile, std::int32_t (&choices)[kBlocks]) const {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const int pair = tile.first + min(i * kUnitRows + static_cast<int>(threadIdx.x), tile.count - 1);
      choices[i] = copies.contiguous ? pair : p.source_rows.pair_to_choice[pair];
    }
  }

  __device__ void find_rows(const std::int32_t (&choices)[kBlocks]) {
    std::int64_t* offsets = shared.row_offsets[++tiles % 2];  // the other buffer may still be read
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const int row = copies.contiguous ? choices[i] : choices[i] / p.source_rows.choices_per_row;
      offsets[i * kUnitRows + threadIdx.x] = static_cast<std::int64_t>(row) * p.inner;
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kGroup) : "memory");
  }

  /// Gathered rows by this warpgroup, the weight by the copy engine.
  __device__ void gather_tile(const Where& tile) {
    const int first_line = threadIdx.x / (kDepth / kVector), vector = threadIdx.x % (kDepth / kVector);
    const Bf16* rows[kRowsPerThread * kBlocks];
#pragma unroll
    for (int i = 0; i < kRowsPerThread * kBlocks; ++i)
      rows[i] = p.source + shared.row_offsets[tiles % 2][first_line + i * kRowsApart] + vector * kVector;
    for (int k0 = 0; k0 < p.inner; k0 += kDepth) {
      const int stage = wait_for_stage();
      if (threadIdx.x == 0) shared.where[stage] = tile;
      const int bytes = copy_weight(tile, k0, stage);
      Bf16* to = shared.stages[stage].rows + swizzled(first_line, vector);
      const bool valid = k0 + vector * kVector < p.inner;
#pragma unroll
      for (int unit = 0; unit < kBlocks; ++unit) {
        if (unit * kUnitRows >= tile.count) break;
#pragma unroll
        for (int i = unit * kRowsPerThread; i < (unit + 1) * kRowsPerThread; ++i)
          copy_async(to + i * kRowsApart * kDepth, rows[i] + (valid ? k0 : 0), valid);
      }
      announce(stage, bytes);
    }
  }

  /// Everything in vectors of four.
  __device__ void gather_tile_by_four(const Where& tile) {
    const std::int64_t* offsets = shared.row_offsets[tiles % 2];
    const Bf16* weight = p.weight + tile.expert * p.weight_stride_expert;
    for (int k0 = 0; k0 < p.inner; k0 += kDepth) {
      const int stage = wait_for_stage();
      if (threadIdx.x == 0) shared.where[stage] = tile;
      auto& to = shared.stages[stage];
      copy_lines_by_four(to.rows, (tile.count + kUnitRows - 1) / kUnitRows * kUnitRows, p.inner - k0, p.source,
                         [&](int line) { return p.source + offsets[line] + k0; });
      if constexpr (kWeight == Major::depth) {
        copy_lines_by_four(to.weight, kColumns, p.inner - k0, p.source, [&](int line) {
          const int column = tile.column + line;
          return column < p.outer ? weight + column * p.weight_stride_outer + k0 : nullptr;
        });
      } else {
        for (int first = 0; first < kColumns; first += kLineValues)
          copy_lines_by_four(to.weight + first * kDepth, kDepth, p.outer - tile.column - first, p.source,
                             [&](int line) {
                               const int k = k0 + line;
                               return k < p.inner ? weight + k * p.weight_stride_inner + tile.column + first : nullptr;
                             });
      }
      announce(stage, 0);
    }
  }

  __device__ void run(const Schedule& schedule) {
    if (copies.aligned && copies.contiguous) {
      schedule.for_each_tile(kBlocks, kColumns, [&](const Where& tile) { copy_tile(tile); });
      return end();
    }
    const auto gather = [&](const Where& tile) { copies.aligned ? gather_tile(tile) : gather_tile_by_four(tile); };
    Where tile{};
    schedule.for_each_tile(kBlocks, kColumns, [&](const Where& next) {
      std::int32_t choices[kBlocks];
      look_up_choices(next, choices);  // which come while the tile before is gathered
      if (tile.count != 0) gather(tile);
      find_rows(choices);
      tile = next;
    });
    if (tile.count != 0) gather(tile);
    end();
  }
};

#endif

}  // namespace switchyard::cuda::expert_product
