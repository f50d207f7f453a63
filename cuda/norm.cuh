#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

// How the norms' kernels share out rows among threads, and fetch the next ones while they work on one.
namespace switchyard::cuda {

constexpr int kLongestRow = 8192;
constexpr int kPerThread = 16;  // elements of a row: few threads a row mean few barriers and shuffles
constexpr int kMaxThreads = kLongestRow / kPerThread, kMaxWarps = kMaxThreads / 32;

/// How a block shares out a row: threads take pieces of kWidth neighbours in turn.
template <int kPieceWidth>
struct Spread {
  static constexpr int kWidth = kPieceWidth, kPieces = kPerThread / kWidth;

  /// The row's element that this thread holds in `slot`.
  __device__ static int column(int slot) { return (slot / kWidth * blockDim.x + threadIdx.x) * kWidth + slot % kWidth; }
};

/// One thread's share of a row, as it lies in memory: bf16 takes half the registers of its float values.
template <class S, class D>
struct Share {
  Vector<D, S::kWidth> pieces[S::kPieces];

  __device__ compute_t<D> operator[](int slot) const {
    return load(&pieces[slot / S::kWidth].values[slot % S::kWidth]);
  }
  __device__ void set(int slot, compute_t<D> value) {
    pieces[slot / S::kWidth].values[slot % S::kWidth] = convert<D>(value);
  }
  __device__ void write(D* row, int width) const {
#pragma unroll
    for (int piece = 0; piece < S::kPieces; ++piece) {
      const int column = S::column(piece * S::kWidth);
      if (column < width) *reinterpret_cast<Vector<D, S::kWidth>*>(row + column) = pieces[piece];
    }
  }
};

/// This thread's share of a parameter; `missing` where there is none and beyond the end.
template <class S, class D>
__device__ inline void read_parameter(const D* parameter, int width, compute_t<D> missing,
                                      compute_t<D> (&values)[kPerThread]) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    values[i] = parameter && S::column(i) < width ? load(parameter + S::column(i)) : missing;
}

/// Starts copying kBytes from global to shared memory, or writing zeros where not valid.
template <int kBytes>
__device__ inline void start_copy(void* to, const void* from, bool valid) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0));
  else if constexpr (kBytes >= 4)
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from), "r"(valid ? kBytes : 0),
                 "n"(kBytes));
  else *static_cast<std::uint16_t*>(to) = valid ? *static_cast<const std::uint16_t*>(from) : std::uint16_t{0};
}

/// The next rows of several operands, and two numbers of each row, on their way into shared memory. A thread fetches
/// and reads its own share only, so this needs no barrier; registers would have to hold what is under way.
template <class S, class D, int kOperands>
struct RowsAhead {
  using A = compute_t<D>;
  static constexpr int kStages = sizeof(D) <= 4 ? 2 : 1;  // of long rows in f64 there is room for one
  Vector<D, S::kWidth>* pieces;                           // [stage][operand][piece][thread]
  A* numbers;                                             // [stage][2][thread]

  static std::size_t bytes(int threads) {
    return kStages * threads * (kOperands * kPerThread * sizeof(D) + 2 * sizeof(A));
  }
  __device__ explicit RowsAhead(char* memory)
      : pieces(reinterpret_cast<Vector<D, S::kWidth>*>(memory)),
        numbers(reinterpret_cast<A*>(pieces + kStages * kOperands * S::kPieces * blockDim.x)) {}

  __device__ int piece_at(int stage, int operand, int piece) const {
    return ((stage * kOperands + operand) * S::kPieces + piece) * blockDim.x + threadIdx.x;
  }
  __device__ void fetch(int stage, int operand, const D* row, int width) const {
#pragma unroll
    for (int piece = 0; piece < S::kPieces; ++piece) {
      const int column = S::column(piece * S::kWidth);
      start_copy<sizeof(D) * S::kWidth>(pieces + piece_at(stage, operand, piece), row + column, column < width);
    }
  }
  __device__ void fetch_number(int stage, int which, const A* number) const {
    start_copy<sizeof(A)>(numbers + (stage * 2 + which) * blockDim.x + threadIdx.x, number, true);
  }
  __device__ Share<S, D> row(int stage, int operand) const {
    Share<S, D> share;
#pragma unroll
    for (int piece = 0; piece < S::kPieces; ++piece) share.pieces[piece] = pieces[piece_at(stage, operand, piece)];
    return share;
  }
  __device__ A number(int stage, int which) const { return numbers[(stage * 2 + which) * blockDim.x + threadIdx.x]; }

  /// Calls use(row, stage) for rows b, b + grid, ... after fetch(row, stage) has been called for it and for the
  /// kStages - 1 that follow.
  template <class Fetch, class Use>
  __device__ void walk(std::int64_t rows, Fetch fetch_row, Use use) const {
    std::int64_t next = blockIdx.x;
    const auto fetch_next = [&](int stage) {
      if (next < rows) fetch_row(next, stage);
      asm volatile("cp.async.commit_group;");
      next += gridDim.x;
    };
    for (int stage = 0; stage < kStages - 1; ++stage) fetch_next(stage);
    int stage = 0;
    for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
      fetch_next((stage + kStages - 1) % kStages);
      asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
      use(row, stage);
      stage = (stage + 1) % kStages;
    }
  }
};

}  // namespace switchyard::cuda
