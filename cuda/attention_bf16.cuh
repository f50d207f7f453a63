#pragma once

// What the bf16 attention kernels on mma.sync share. A block of 4 warps owns 64 rows, each warp 16 of them, so that a
// row's softmax needs only shuffles among 4 lanes; tiles of the other operand pass by in two stages. Head widths are
// padded with zeros to kWidth in shared memory.

#include "cuda/attention.cuh"
#include "cuda/device/mma.cuh"

namespace switchyard::cuda {

constexpr int kRows = 64, kBlockThreads = 128, kWarpRows = 16;

/// Elements of a padded row in shared memory; 16 bytes more than the data, so that eight rows fall into different
/// banks.
template <int kWidth>
constexpr int kPitch = kWidth + 8;

struct Lane {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int group = lane / 4, pair = lane % 4;

  /// Row (of 64) and column (of a block of 8) of element e of this lane's four sums.
  __device__ int row(int e) const { return warp * kWarpRows + group + (e / 2) * 8; }
  __device__ int column(int e) const { return pair * 2 + e % 2; }
};

/// Eight values of which the first `count` exist. Out of line, as is dropout: unrolled into every use, the rare cases
/// would outgrow the instruction cache.
static __device__ __noinline__ void copy_unaligned(Bf16* to, const Bf16* from, int count) {
  for (int n = 0; n < 8; ++n) to[n] = from != nullptr && n < count ? from[n] : __float2bfloat16_rn(0.0f);
}

static __device__ __noinline__ float dropout_of_element(std::uint64_t seed, std::uint64_t start, std::uint64_t element,
                                                        float probability) {
  return uniform_from_bits(philox_element(seed, start, element)) < probability ? 0.0f : 1.0f / (1.0f - probability);
}
__device__ inline float dropout_factor(const Problem& p, int b, int h, int query, int key) {
  const std::uint64_t element = ((static_cast<std::uint64_t>(b) * p.heads + h) * p.queries + query) * p.keys + key;
  return dropout_of_element(p.seed, static_cast<std::uint64_t>(*p.stream_base) + p.stream_offset, element,
                            static_cast<float>(p.dropout));
}

/// Copies rows first, first + step, ... of one head to shared memory, with zeros outside the operand; asynchronously
/// where `vector` says that 8 or 4 elements can be copied at once.
template <int kWidth, int kCount>
__device__ void load_rows(Bf16* to, const Heads<Bf16>& from, int b, int h, int first, int limit, int vector,
                          int step = 1) {
  constexpr int kPiece = 8, kPerRow = kWidth / kPiece;
  for (int i = threadIdx.x; i < kCount * kPerRow; i += kBlockThreads) {
    const int row = first + step * (i / kPerRow), column = i % kPerRow * kPiece;
    const bool inside = row >= 0 && row < limit;
    const Bf16* source = from.row(b, h, inside ? row : 0) + column;
    Bf16* target = to + i / kPerRow * kPitch<kWidth> + column;
    if (vector == 8) {
      const bool valid = inside && column < from.width;
      copy_async<16>(target, valid ? source : from.data, valid);
    } else if (vector == 4) {
      const bool valid = inside && column < from.width, second = inside && column + 4 < from.width;
      copy_async<8>(target, valid ? source : from.data, valid);
      copy_async<8>(target + 4, second ? source + 4 : from.data, second);
    } else {
      copy_unaligned(target, inside ? source : nullptr, from.width - column);
    }
  }
}

/// Walks tiles first, first + step, ... below end: issue(tile, stage) starts the copies of a tile into one of two
/// stages while use(tile, stage) works on the one before it.
template <class Issue, class Use>
__device__ void two_stages(int first, int end, int step, Issue issue, Use use) {
  if (first < end) issue(first, 0);
  commit_copies();
  for (int tile = first, stage = 0; tile < end; tile += step, stage ^= 1) {
    if (tile + step < end) issue(tile + step, stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();  // this tile is there
    use(tile, stage);
    __syncthreads();  // its stage may be filled again
  }
}

/// A tile in shared memory as the products below take it: operator() gives the first element of a row.
template <int kWidth>
struct Tile {
  const Bf16* first;

  __device__ const Bf16* operator()(int row) const { return first + row * kPitch<kWidth>; }
};

/// sums[n] = 16 rows of `left` times rows n * 8 .. of `right`, over the width.
template <int kWidth, int kBlocks, class Left, class Right>
__device__ void row_by_row(float (&sums)[kBlocks][4], const Left& left, const Right& right, const Lane& at) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0;
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    std::uint32_t a[4];
    load_blocks<false>(a, left(at.lane % 16) + k + at.lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < kBlocks; n += 2) {
      std::uint32_t b[4];
      load_blocks<false>(b, right(n * 8 + at.lane / 16 * 8 + at.lane % 8) + k + at.lane / 8 % 2 * 8);
      multiply_blocks(sums[n], a, b[0], b[1]);
      multiply_blocks(sums[n + 1], a, b[2], b[3]);
    }
  }
}

/// sums += weights [16, kBlocks * 8] times the rows of `right` [kBlocks * 8, kWidth].
template <int kWidth, int kBlocks, class Right>
__device__ void add_weighted_rows(float (&sums)[kWidth / 8][4], const float (&weights)[kBlocks][4], const Right& right,
                                  const Lane& at) {
#pragma unroll
  for (int n = 0; n < kBlocks; n += 2) {
    const std::uint32_t a[4] = {pack_bf16(weights[n][0], weights[n][1]), pack_bf16(weights[n][2], weights[n][3]),
                                pack_bf16(weights[n + 1][0], weights[n + 1][1]),
                                pack_bf16(weights[n + 1][2], weights[n + 1][3])};
#pragma unroll
    for (int c = 0; c < kWidth / 8; c += 2) {
      std::uint32_t b[4];
      load_blocks<true>(b, right(n * 8 + at.lane % 16) + c * 8 + at.lane / 16 * 8);
      multiply_blocks(sums[c], a, b[0], b[1]);
      multiply_blocks(sums[c + 1], a, b[2], b[3]);
    }
  }
}

/// Stores the 16 x kWidth sums of each warp times `factor`.
template <int kWidth>
__device__ void store_rows(const float (&sums)[kWidth / 8][4], const float (&factor)[2], const Heads<Bf16>& to, int b,
                           int h, int first, int limit, const Lane& at) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + at.row(half * 2);
    if (row >= limit) continue;
    Bf16* values = to.row(b, h, row);
#pragma unroll
    for (int c = 0; c < kWidth / 8; ++c) {
      const int column = c * 8 + at.column(0);
      const __nv_bfloat162 two =
          __floats2bfloat162_rn(sums[c][half * 2] * factor[half], sums[c][half * 2 + 1] * factor[half]);
      if (column + 1 < to.width && to.width % 2 == 0) {
        *reinterpret_cast<__nv_bfloat162*>(values + column) = two;
      } else if (column < to.width) {
        values[column] = two.x;
        if (column + 1 < to.width) values[column + 1] = two.y;
      }
    }
  }
}

/// True when some pair of the tile may be hidden and each has to be asked for.
__device__ inline bool has_hidden(const Problem& p, int first_query, int queries, int first_key, int keys) {
  return p.mask || p.key_padding || first_query + queries > p.queries || first_key + keys > p.keys ||
         (p.causal && first_key + keys > p.key_end(first_query));
}

/// Elements that can be copied at once from every row of an operand: 8, 4 or 1.
inline int vector_of(const Heads<Bf16>& x) {
  for (const int n : {8, 4})
    if (reinterpret_cast<std::uintptr_t>(x.data) % (n * sizeof(Bf16)) == 0 && x.batch % n == 0 && x.token % n == 0 &&
        x.head % n == 0 && x.width % n == 0)
      return n;
  return 1;
}

/// A block for every 64 rows of a head.
dim3 row_blocks(const Problem& p, int rows);

}  // namespace switchyard::cuda
