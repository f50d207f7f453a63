#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/dtype.h"

/// Products with chosen rows of a matrix, for so few of them that calling the BLAS library would take longer.
namespace switchyard::cpu {

/// A register of numbers; how many depends on the processor that this is compiled for.
#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
template <class A>
using Lanes [[gnu::vector_size(kRegisterBytes)]] = A;
template <class A>
constexpr std::int64_t kLanesOf = kRegisterBytes / static_cast<std::int64_t>(sizeof(A));
/// Sums that run side by side, enough to hide the latency of an addition.
constexpr int kTile = 8;

template <class A, class T>
Lanes<A> load(const T* from) {
  Lanes<A> lanes;
  if constexpr (std::is_same_v<A, T>) {
    std::memcpy(&lanes, from, sizeof(lanes));
  } else {
    for (std::int64_t i = 0; i < kLanesOf<A>; ++i) lanes[i] = static_cast<A>(from[i]);
  }
  return lanes;
}

/// Sums of neighbours: those of a, then those of b.
template <class V, int... kIndex>
V fold(V a, V b, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(a, b, (2 * kIndex)...) + __builtin_shufflevector(a, b, (2 * kIndex + 1)...);
}

/// result[j] = the sum of lanes[j], for all j at once.
template <class A>
void sum_lanes(Lanes<A> (&lanes)[kTile], A* result) {
  constexpr auto kIndices = std::make_integer_sequence<int, static_cast<int>(kLanesOf<A>)>{};
  int count = kTile;
#pragma GCC unroll 4
  for (std::int64_t left = kLanesOf<A>; left > 1; left /= 2) {
    const int next = (count + 1) / 2;
#pragma GCC unroll 4
    for (int j = 0; j < next; ++j) lanes[j] = fold(lanes[2 * j], lanes[std::min(2 * j + 1, count - 1)], kIndices);
    count = next;
  }
  std::memcpy(result, lanes, kTile * sizeof(A));
}

/// Rows of one width to be multiplied with each other: results[i][n] = x[i] . rows[n] + shifts[n].
template <class T>
struct RowProducts {
  std::vector<const T*> x;
  std::vector<accumulate_t<T>*> results;
  std::vector<const T*> rows;
  std::vector<accumulate_t<T>> shifts;

  void clear() {
    x.clear();
    results.clear();
    rows.clear();
    shifts.clear();
  }
};

/// result[i kTile / kCount + n] = x[i] . rows[n] for kCount x and kTile / kCount rows.
template <int kCount, class T>
void dots(const T* const* x, const T* const* rows, std::int64_t width, accumulate_t<T>* result) {
  using A = accumulate_t<T>;
  constexpr int kRows = kTile / kCount;
  Lanes<A> sums[kTile] = {};
  std::int64_t k = 0;
  for (; k + kLanesOf<A> <= width; k += kLanesOf<A>) {
    Lanes<A> values[kCount], weights[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) values[i] = load<A>(x[i] + k);
#pragma GCC unroll 8
    for (int n = 0; n < kRows; ++n) weights[n] = load<A>(rows[n] + k);
#pragma GCC unroll 8
    for (int j = 0; j < kTile; ++j) sums[j] += values[j / kRows] * weights[j % kRows];
  }
  sum_lanes<A>(sums, result);
  for (; k < width; ++k)
    for (int j = 0; j < kTile; ++j) result[j] += static_cast<A>(x[j / kRows][k]) * static_cast<A>(rows[j % kRows][k]);
}

/// All products with rows first .. last - 1, at most kTile / kCount. In a tile that is not full the last stand in for
/// those that are missing.
template <int kCount, class T>
void multiply_tiles(const RowProducts<T>& products, std::int64_t width, std::size_t first, std::size_t last) {
  constexpr std::size_t kRows = kTile / kCount;
  const T* rows[kRows];
  for (std::size_t n = 0; n < kRows; ++n) rows[n] = products.rows[std::min(first + n, last - 1)];
  const std::size_t count = products.x.size();
  for (std::size_t from = 0; from < count; from += kCount) {
    const T* x[kCount];
    for (std::size_t i = 0; i < kCount; ++i) x[i] = products.x[std::min(from + i, count - 1)];
    accumulate_t<T> result[kTile];
    dots<kCount>(x, rows, width, result);
    for (std::size_t i = 0; i < kCount && from + i < count; ++i)
      for (std::size_t n = first; n < last; ++n)
        products.results[from + i][n] = result[i * kRows + n - first] + products.shifts[n];
  }
}

/// All products with rows first .. last - 1; how they are cut into such calls does not change them.
template <class T>
void multiply_rows(const RowProducts<T>& products, std::int64_t width, std::size_t first, std::size_t last) {
  for (; first + kTile <= last; first += kTile) multiply_tiles<1>(products, width, first, first + kTile);
  const std::size_t left = last - first;
  if (left > kTile / 2) multiply_tiles<1>(products, width, first, last);
  else if (left > kTile / 4) multiply_tiles<2>(products, width, first, last);
  else if (left > kTile / 8) multiply_tiles<4>(products, width, first, last);
  else if (left > 0) multiply_tiles<8>(products, width, first, last);
}

/// Rows of a matrix, of which the first has number `first`, and what each is worth.
template <class A>
struct WeightedRows {
  const std::int32_t* numbers;
  const A* weights;
  std::int64_t count, first = 0;
};

/// sums[m] += weight . rows[number][m] for kRegisters registers of columns.
template <int kRegisters, class T, class A>
void add_columns(const WeightedRows<A>& chosen, const T* rows, std::int64_t rows_apart, A* sums) {
  Lanes<A> totals[kRegisters];
  std::memcpy(totals, sums, sizeof(totals));
  for (std::int64_t i = 0; i < chosen.count; ++i) {
    const T* row = rows + (chosen.numbers[i] - chosen.first) * rows_apart;
#pragma GCC unroll 8
    for (int r = 0; r < kRegisters; ++r) totals[r] += chosen.weights[i] * load<A>(row + r * kLanesOf<A>);
  }
  std::memcpy(sums, totals, sizeof(totals));
}

/// sums[m] += weight . rows[number][m] for m below `columns`, in the order of the chosen rows.
template <class T, class A>
void add_rows(const WeightedRows<A>& chosen, const T* rows, std::int64_t rows_apart, std::int64_t columns, A* sums) {
  std::int64_t m = 0;
  const auto in_registers = [&]<int kRegisters>(std::integral_constant<int, kRegisters>) {
    for (; m + kRegisters * kLanesOf<A> <= columns; m += kRegisters * kLanesOf<A>)
      add_columns<kRegisters>(chosen, rows + m, rows_apart, sums + m);
  };
  in_registers(std::integral_constant<int, kTile>{});
  in_registers(std::integral_constant<int, 2>{});
  in_registers(std::integral_constant<int, 1>{});
  for (; m < columns; ++m)
    for (std::int64_t i = 0; i < chosen.count; ++i)
      sums[m] += chosen.weights[i] * static_cast<A>(rows[(chosen.numbers[i] - chosen.first) * rows_apart + m]);
}

}  // namespace switchyard::cpu
