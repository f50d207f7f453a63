#pragma once

// What the attention kernels for Hopper share. A block is three warpgroups: one warp of the first copies tiles ahead,
// the other two multiply, 64 rows of the 128 of a block each. Tiles lie in shared memory as panels of 64 columns.

#include "cuda/attention.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/wgmma.cuh"

namespace switchyard::cuda {

/// True in code for sm_90a, which has the instructions used here. A kernel puts its body inside `if constexpr
/// (kHopper)`: other GPUs get empty ones, which are not launched.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHopper = true;
#else
constexpr bool kHopper = false;
#endif

constexpr int kBlockRows = 128, kGroupRows = 64, kGroups = 2, kHopperThreads = (1 + kGroups) * 128;
constexpr int kCopyRegisters = 24, kMultiplyRegisters = 240;

/// Panels of 64 columns that hold kWidth columns.
template <int kWidth>
constexpr int kPanels = (kWidth + kLineValues - 1) / kLineValues;
template <int kWidth, int kRows>
constexpr int kTileElements = kPanels<kWidth>* kRows* kLineValues;
template <int kWidth, int kRows>
constexpr int kTileBytes = kTileElements<kWidth, kRows>* static_cast<int>(sizeof(Bf16));

/// Counts through a ring of kStages buffers, and knows the parity of their barriers' phases.
template <int kStages>
struct RingPosition {
  int stage = 0, parity = 0;

  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// The copy engine's view of a [B, T, H, d] operand, in boxes of 64 columns.
struct TileMap {
  CUtensorMap map;

  template <int kWidth, int kRows>
  __device__ void copy(Bf16* to, int b, int h, int first_row, std::uint64_t* done) const {
#pragma unroll
    for (int panel = 0; panel < kPanels<kWidth>; ++panel)
      copy_box(to + panel * kRows * kLineValues, map, panel * kLineValues, first_row, h, b, done);
  }
};

/// Whether the copy engine can read an operand: rows of every head as a whole aligned to 16 bytes.
TileMap tile_map(const Heads<Bf16>& x, int batch, int rows, int heads, int box_rows);

/// Which elements of a product of 64 rows a lane holds, see wgmma.cuh; `row` counts within the warpgroup.
struct GroupLane {
  int group = static_cast<int>(threadIdx.x) / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  int pair = lane % 4;

  __device__ int row(int half) const { return warp * 16 + lane / 4 + half * 8; }
  __device__ int column(int block, int i) const { return block * 8 + pair * 2 + i; }
};

/// The work of a block: tiles of one operand's rows, head by head. Under causality the first and the last tile of a
/// head go to one block, then the second and the last but one: blocks get equal work, and a head's other operand stays
/// in the L2 cache while its tiles are worked on.
struct Schedule {
  int tiles, heads, batch;
  bool paired;

  __host__ __device__ int items_per_head() const { return paired ? (tiles + 1) / 2 : tiles; }
  __host__ __device__ int items() const { return items_per_head() * heads * batch; }

  /// f(tile, head, batch) for the tiles of this block.
  template <class F>
  __device__ void for_each(F f) const {
    const int per_head = items_per_head();
    for (int item = blockIdx.x; item < items(); item += gridDim.x) {
      const int first = item % per_head, last = paired ? tiles - 1 - first : first, step = max(1, last - first);
#pragma unroll 1
      for (int tile = first; tile <= last; tile += step) f(tile, item / per_head % heads, item / per_head / heads);
    }
  }
};
Schedule schedule_of(const Problem& p, int rows);
unsigned blocks_of(const Schedule& schedule, Device device);

/// A bit for every sum of a lane, in their order. A loop that stays a loop: the rare options cost no code in the
/// unrolled one that uses the bits.
template <int kBlocks, class F>
__device__ inline std::uint64_t bits_of(const GroupLane& at, F f) {
  static_assert(kBlocks <= 16);
  std::uint64_t bits = 0;
#pragma unroll 1
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll 1
    for (int e = 0; e < 4; ++e)
      bits |= static_cast<std::uint64_t>(f(at.row(e / 2), at.column(n, e % 2))) << (n * 4 + e);
  return bits;
}

/// Hides from 64 queries what causality, the end of the keys, or a mask hides of kKeys keys.
template <int kKeys>
__device__ inline void hide_keys(const Problem& p, int b, int first_query, int first_key, const GroupLane& at,
                                 float (&logits)[kKeys / 2]) {
  if (first_key + kKeys > p.key_end(first_query)) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int visible = p.key_end(first_query + at.row(half)) - first_key - at.pair * 2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (n * 8 + i >= visible) logits[n * 4 + half * 2 + i] = -INFINITY;
    }
  }
  if (p.mask == nullptr && p.key_padding == nullptr) return;
  const std::uint64_t visible =
      bits_of<kKeys / 8>(at, [&](int row, int column) { return p.visible(b, first_query + row, first_key + column); });
#pragma unroll
  for (int n = 0; n < kKeys / 2; ++n)
    if ((visible >> n & 1) == 0) logits[n] = -INFINITY;
}

/// A bit for each of four neighbouring elements of the dropout stream, set where dropout keeps the weight.
__device__ inline unsigned kept_of_four(const Problem& p, std::uint64_t element) {
  const auto words = philox(p.seed, static_cast<std::uint64_t>(*p.stream_base) + p.stream_offset + element / 4);
  unsigned kept = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    kept |= static_cast<unsigned>(uniform_from_bits(words[i]) >= static_cast<float>(p.dropout)) << i;
  return kept;
}

/// A bit for every weight of a lane that dropout keeps, in a tile of queries as rows and keys as columns, or the other
/// way round with kTransposed. One call of Philox gives the words of four neighbouring keys. Their weights lie in two
/// lanes, or in four, so four lanes call it for one group of keys each and hand the bits around.
template <int kBlocks, bool kTransposed>
__device__ inline std::uint64_t kept_bits(const Problem& p, int b, int h, int first_query, int first_key,
                                          const GroupLane& at) {
  const auto query_of = [&](int row, int column) { return first_query + (kTransposed ? column : row); };
  const auto key_of = [&](int row, int column) { return first_key + (kTransposed ? row : column); };
  if (p.keys % 4 != 0)
    return bits_of<kBlocks>(at, [&](int row, int column) {
      return p.dropout_factor(b, h, query_of(row, column), key_of(row, column)) != 0;
    });
  const std::uint64_t head = (static_cast<std::uint64_t>(b) * p.heads + h) * p.queries;
  const int mine = kTransposed ? at.lane / 4 % 4 : at.pair;  // of the four groups of keys
  std::uint64_t bits = 0;
#pragma unroll 1
  for (int n = 0; n < kBlocks; ++n) {
    const int row = at.row(mine / 2), column = kTransposed ? at.column(n, mine % 2) : n * 8 + mine % 2 * 4;
    const std::uint64_t element = (head + query_of(row, column)) * p.keys + key_of(row, column);
    const unsigned kept = kept_of_four(p, element - (kTransposed ? mine : 0));
#pragma unroll
    for (int group = 0; group < (kTransposed ? 4 : 2); ++group) {
      const int from = kTransposed ? (at.lane & ~12) | group * 4 : (at.lane & ~3) | (group * 2 + at.pair / 2);
      const unsigned four = __shfl_sync(0xffffffffu, kept, from);
      const std::uint64_t found = kTransposed ? four >> mine & 1 : four >> at.pair % 2 * 2 & 3;
      bits |= found << (n * 4 + group * (kTransposed ? 1 : 2));
    }
  }
  return bits;
}

/// weights[n] / (1 - p) where bit n is set, else 0.
template <int kCount>
__device__ inline void drop(std::uint64_t kept, double dropout, float (&weights)[kCount]) {
  const float factor = static_cast<float>(1 / (1 - dropout));
#pragma unroll
  for (int n = 0; n < kCount; ++n) weights[n] = (kept >> n & 1) != 0 ? weights[n] * factor : 0.0f;
}

/// 2 to the power x, 0 for minus infinity.
__device__ inline float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Keeps the compiler from moving uses of sums across a wait.
template <int kCount>
__device__ inline void pin(float (&sums)[kCount]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) asm volatile("" : "+f"(sums[n])::"memory");
}

/// What to add to a descriptor for an operand that begins so many elements further.
constexpr std::uint64_t descriptor_step(int elements) { return elements * sizeof(Bf16) / 16; }

/// Starts sums = left right^T: 64 rows of `left` (of a tile of kLeftRows) and kRightRows of `right`, over kWidth.
template <int kWidth, int kLeftRows, int kRightRows>
__device__ inline void start_logits(float (&sums)[kRightRows / 2], const Bf16* left, const Bf16* right) {
  const std::uint64_t a = depth_operand(left), b = depth_operand(right);
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    const int panel = k / kLineValues * kLineValues, column = k % kLineValues;
    Wgmma<kRightRows>::template multiply<Major::depth, Major::depth>(
        sums, a + descriptor_step(panel * kLeftRows + column), b + descriptor_step(panel * kRightRows + column), k > 0);
  }
}

/// Starts sums += weights [64, kRows] times the tile `right` [kRows, kWidth].
template <int kWidth, int kRows>
__device__ inline void start_weighted_rows(float (&sums)[kWidth / 2], const std::uint32_t (&weights)[kRows / 16][4],
                                           const Bf16* right) {
  const std::uint64_t b = wide_operand(right, kRows * kLineValues * sizeof(Bf16));
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k)
    Wgmma<kWidth>::template multiply<Major::wide>(sums, weights[k], b + descriptor_step(k * 16 * kLineValues), true);
}

/// Rounds products to the left operand of the next.
template <int kColumns>
__device__ inline void pack_weights(const float (&sums)[kColumns / 2], std::uint32_t (&weights)[kColumns / 16][4]) {
#pragma unroll
  for (int k = 0; k < kColumns / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[k][i] = pack_bf16(sums[k * 8 + i * 2], sums[k * 8 + i * 2 + 1]);
}

template <int kColumns>
__device__ inline float unpack_weight(const std::uint32_t (&weights)[kColumns / 16][4], int n) {
  const std::uint32_t two = weights[n / 8][n % 8 / 2];
  return __uint_as_float(n % 2 == 0 ? two << 16 : two & 0xffff0000u);
}

/// Stores 64 rows times `factor`, two neighbouring lanes together as 8 bytes where rows allow it.
template <int kWidth>
__device__ inline void store_rows(const float (&sums)[kWidth / 2], const float (&factor)[2], const Heads<Bf16>& to,
                                  int b, int h, int first, int limit, const GroupLane& at) {
  const bool odd = at.pair % 2;
  const bool wide = to.width % 4 == 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + at.row(half);
    Bf16* values = to.row(b, h, row);
#pragma unroll
    for (int n = 0; n < kWidth / 8; n += 2) {
      std::uint32_t words[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* two = sums + (n + i) * 4 + half * 2;
        words[i] = pack_bf16(two[0] * factor[half], two[1] * factor[half]);
      }
      if (wide) {
        // Block n of both lanes goes to the even lane, block n + 1 to the odd one.
        const std::uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? words[0] : words[1], 1);
        const int column = (n + odd) * 8 + at.pair / 2 * 4;
        if (row < limit && column < to.width)
          *reinterpret_cast<uint2*>(values + column) = odd ? uint2{other, words[1]} : uint2{words[0], other};
      } else if (row < limit) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const auto two = *reinterpret_cast<const __nv_bfloat162*>(&words[i]);
          const int column = at.column(n + i, 0);
          if (column < to.width) values[column] = two.x;
          if (column + 1 < to.width) values[column + 1] = two.y;
        }
      }
    }
  }
}

}  // namespace switchyard::cuda
