#pragma once

#include <algorithm>
#include <array>

#include "core/shape.h"

namespace switchyard {

/// Axes of N operands of one shape: those of size 1 are dropped, and those that lie back to back in every operand are
/// one, so that dense operands have a single axis. `strides[i][n]` is operand n's along axis i.
template <std::size_t N>
struct MergedAxes {
  using Strides = std::array<std::int64_t, N>;

  Shape sizes;
  boost::container::small_vector<Strides, 6> strides;

  void append(std::int64_t size, const Strides& stride) {
    bool merges = !sizes.empty();
    for (std::size_t n = 0; merges && n < N; ++n) merges = strides.back()[n] == stride[n] * size;
    if (!merges) {
      sizes.push_back(1);
      strides.emplace_back();
    }
    sizes.back() *= size;
    strides.back() = stride;
  }
};

/// The axes in row-major order; or, where any order of walking will do, by the strides of the first operand, so that
/// operands which share a permuted layout merge as well.
template <std::size_t N>
MergedAxes<N> merge_axes(const Shape& sizes, const std::array<Shape, N>& strides, bool any_order) {
  Shape axes;
  for (std::int64_t i = 0; i < sizes.rank(); ++i)
    if (sizes[i] != 1) axes.push_back(i);
  if (any_order)
    std::stable_sort(axes.begin(), axes.end(), [&](std::int64_t a, std::int64_t b) {
      for (std::size_t n = 0; n < N; ++n)
        if (strides[n][a] != strides[n][b]) return strides[n][a] > strides[n][b];
      return false;
    });
  MergedAxes<N> merged;
  for (const std::int64_t axis : axes) {
    typename MergedAxes<N>::Strides stride;
    for (std::size_t n = 0; n < N; ++n) stride[n] = strides[n][axis];
    merged.append(sizes[axis], stride);
  }
  return merged;
}

}  // namespace switchyard
