#pragma once

// Products of single rows, as in decoding: every weight is used once, so what counts is how many bytes are on their
// way. Groups of neighbouring threads share a row and read it in vectors of 16 bytes.

#include <type_traits>

#include "cuda/device/convert.cuh"

namespace switchyard::cuda {

/// kValues neighbouring elements, kept as words until they are used: loose elements of 16 bits take a register each.
template <class D, int kValues>
class Packed {
 public:
  __device__ void read(const D* from) { words_ = *reinterpret_cast<const Words*>(from); }
  __device__ compute_t<D> operator[](int i) const { return load(reinterpret_cast<const D*>(&words_) + i); }

 private:
  static constexpr int kBytes = sizeof(D) * kValues;
  using Word = std::conditional_t<kBytes % 4 == 0, unsigned, unsigned short>;
  using Words = Vector<Word, kBytes / static_cast<int>(sizeof(Word))>;
  Words words_;
};

/// x . row r of w, for kRows rows of `width` elements (a multiple of kValues), `apart` elements from one to the next,
/// of which the first `count` are there. In a fixed order: every one of a group of kLanes neighbouring threads (a power
/// of two up to 32) gets the sums. All threads of the warp must take part. Each has kAhead vectors of every row on
/// their way at a time.
template <int kRows, int kLanes, int kValues, int kAhead, class D>
__device__ inline void dots(const D* x, const D* w, std::int64_t apart, int count, int width,
                            compute_t<D> (&result)[kRows]) {
  constexpr int kStep = kLanes * kValues;
  constexpr int kChains = kValues > kRows ? kValues / kRows : 1;  // additions that do not wait for each other
  compute_t<D> sums[kRows][kChains] = {};
  for (int first = static_cast<int>(threadIdx.x) % kLanes * kValues; first < width; first += kAhead * kStep) {
    Packed<D, kValues> weights[kRows][kAhead], factors[kAhead];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (r < count && first + i * kStep < width) weights[r][i].read(w + r * apart + first + i * kStep);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i * kStep < width) factors[i].read(x + first + i * kStep);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
#pragma unroll
        for (int v = 0; v < kValues; ++v)
          if (r < count && first + i * kStep < width) sums[r][v % kChains] += factors[i][v] * weights[r][i][v];
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    result[r] = sums[r][0];
#pragma unroll
    for (int v = 1; v < kChains; ++v) result[r] += sums[r][v];
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
      result[r] += __shfl_xor_sync(0xffffffffu, result[r], distance);
  }
}

/// The same for one row.
template <int kLanes, int kValues, int kAhead, class D>
__device__ inline compute_t<D> dot(const D* x, const D* w, int width) {
  compute_t<D> sums[1];
  dots<1, kLanes, kValues, kAhead>(x, w, 0, 1, width, sums);
  return sums[0];
}

}  // namespace switchyard::cuda
