#pragma once

// Transformer-XL positions on the tensor cores. A pair (query i, key j) meets the position key of row j - i + c. In a
// tile of rows (r) and columns (c) that row depends on c - r, or on c + r, only: a band of rows + columns - 1 position
// keys serves the whole tile. Products are made for the whole band, put down in shared memory, and picked up skewed.

#include "cuda/attention_bf16.cuh"

namespace switchyard::cuda {

/// The rows of an operand that a tile of 64 rows and kStep columns meets, in a ring of chunks of kStep rows: the next
/// tile's band begins one chunk later. Row u of the band of step t is row u + t kStep of what the ring walks along.
template <int kWidth, int kStep>
struct BandRing {
  static constexpr int kChunks = kRows / kStep + 1, kSlots = kChunks + 1;
  static constexpr int kElements = kSlots * kStep * kPitch<kWidth>;

  Bf16* memory;
  Heads<Bf16> from;
  int batch, head, first, direction, limit,
      vector;  // row 0 of step 0 is row `first` of `from`, the next is first + direction

  __device__ void load_chunk(int chunk) const {
    load_rows<kWidth, kStep>(memory + chunk % kSlots * kStep * kPitch<kWidth>, from, batch, head,
                             first + direction * chunk * kStep, limit, vector, direction);
  }
  /// What step t needs beyond the steps before it.
  __device__ void load_step(int t) const {
    if (t == 0)
      for (int chunk = 0; chunk + 1 < kChunks; ++chunk) load_chunk(chunk);
    load_chunk(t + kChunks - 1);
  }

  /// What lies behind the ring in shared memory.
  __device__ float* scratch() const { return reinterpret_cast<float*>(memory + kElements); }

  struct Rows {
    const Bf16* memory;
    int first;
    __device__ const Bf16* operator()(int row) const {
      const int u = first + row;
      return memory + (u / kStep % kSlots * kStep + u % kStep) * kPitch<kWidth>;
    }
  };
  /// Rows of the band of step t from row `first` on.
  __device__ Rows rows(int t, int first_row) const { return {memory, t * kStep + first_row}; }
};

/// Scratch of one warp: 16 rows against a band, or a band against kStep columns.
template <int kStep>
constexpr int kBandRows = kWarpRows + kStep;
template <int kStep>
constexpr int kRowSkewPitch = kBandRows<kStep> + 8;
template <int kStep>
constexpr int kRowSkewFloats = kWarpRows* kRowSkewPitch<kStep>;
template <int kStep>
constexpr int kColumnSkewPitch = kStep + 4;
template <int kStep>
constexpr int kColumnSkewFloats = kBandRows<kStep>* kColumnSkewPitch<kStep>;

/// logits(r, c) += row r of `left` . row c - r + 15 of `band`.
template <int kWidth, int kStep, class Left, class Band>
__device__ void add_row_band(float (&logits)[kStep / 8][4], const Left& left, const Band& band, float* scratch,
                             const Lane& at) {
  constexpr int kPitchFloats = kRowSkewPitch<kStep>;
  float products[kBandRows<kStep> / 8][4];
  row_by_row<kWidth>(products, left, band, at);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kBandRows<kStep> / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) scratch[(at.group + e / 2 * 8) * kPitchFloats + n * 8 + at.column(e)] = products[n][e];
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = at.group + e / 2 * 8;
      logits[n][e] += scratch[row * kPitchFloats + n * 8 + at.column(e) - row + kWarpRows - 1];
    }
}

/// The way back: moved(r, c - r + 15) = dlogits(r, c), zero elsewhere, to be multiplied with the band.
template <int kStep>
__device__ void move_to_band(const float (&dlogits)[kStep / 8][4], float (&moved)[kBandRows<kStep> / 8][4],
                             float* scratch, const Lane& at) {
  constexpr int kPitchFloats = kRowSkewPitch<kStep>;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) scratch[(at.group + e / 2 * 8) * kPitchFloats + n * 8 + at.column(e)] = dlogits[n][e];
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kBandRows<kStep> / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = at.group + e / 2 * 8, column = n * 8 + at.column(e) + row - (kWarpRows - 1);
      moved[n][e] = column >= 0 && column < kStep ? scratch[row * kPitchFloats + column] : 0.0f;
    }
}

/// logits(r, c) += row u of `band` . row c of `right`, where u is c - r + 15, or c + r with kAscending.
template <int kWidth, int kStep, bool kAscending, class Band, class Right>
__device__ void add_column_band(float (&logits)[kStep / 8][4], const Band& band, const Right& right, float* scratch,
                                const Lane& at) {
  constexpr int kPitchFloats = kColumnSkewPitch<kStep>;
  __syncwarp();
#pragma unroll
  for (int first = 0; first < kBandRows<kStep>; first += kWarpRows) {
    float products[kStep / 8][4];
    row_by_row<kWidth>(
        products, [&](int row) { return band(first + row); }, right, at);
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        scratch[(first + at.group + e / 2 * 8) * kPitchFloats + n * 8 + at.column(e)] = products[n][e];
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = at.group + e / 2 * 8, column = n * 8 + at.column(e);
      const int u = kAscending ? column + row : column - row + kWarpRows - 1;
      logits[n][e] += scratch[u * kPitchFloats + column];
    }
}

/// The position keys as rows of heads; one set for all batches.
__host__ __device__ inline Heads<Bf16> position_rows(const Problem& p) {
  return {const_cast<Bf16*>(p.position), 0, p.position_row, p.position_head, p.query.width};
}

/// A ring of position keys. Row 0 of its first band is for pairs with key - query = `distance`; `direction` says
/// whether distances grow or shrink from row to row.
template <int kWidth, int kStep>
__device__ inline BandRing<kWidth, kStep> position_ring(const Problem& p, Bf16* memory, int h, int distance,
                                                        int direction, int vector) {
  const int first = distance + static_cast<int>(p.position_zero - p.query_offset);
  return {memory, position_rows(p), 0, h, first, direction, static_cast<int>(p.positions), vector};
}

}  // namespace switchyard::cuda
