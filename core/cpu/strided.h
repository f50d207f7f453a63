#pragma once

#include <algorithm>
#include <array>

#include "core/merged_axes.h"
#include "core/parallel.h"
#include "core/tensor.h"

namespace switchyard::cpu {

/// Walks the elements of N operands of one shape in runs along the innermost axis.
///
/// Axes are ordered by the strides of operand 0, and merged wherever they lie back to back in every operand, so dense
/// operands are one single run, and operands that share a permuted layout are too.
template <std::size_t N>
class StridedLoop {
 public:
  using Offsets = std::array<std::int64_t, N>;

  StridedLoop(const Shape& sizes, const std::array<Shape, N>& strides) : numel_(sizes.numel()) {
    MergedAxes<N> merged = merge_axes<N>(sizes, strides, true);
    if (merged.sizes.empty()) merged.append(1, Offsets{});
    sizes_ = std::move(merged.sizes);
    steps_ = std::move(merged.strides);
  }

  std::int64_t numel() const { return numel_; }
  /// How far each operand moves from one element of a run to the next.
  const Offsets& inner_strides() const { return steps_.back(); }

  /// Calls f(offsets, count) for consecutive runs that cover elements begin..end of the walking order. `offsets` are
  /// those of the run's first element, counted from each operand's own first element.
  template <class F>
  void walk(std::int64_t begin, std::int64_t end, F&& f) const {
    if (begin >= end) return;
    const std::int64_t last = sizes_.rank() - 1;
    Shape index(sizes_.size(), 0);
    Offsets at{};
    for (std::int64_t axis = last, rest = begin; axis >= 0; --axis) {
      index[axis] = rest % sizes_[axis];
      rest /= sizes_[axis];
      move(at, axis, index[axis]);
    }
    while (true) {
      const std::int64_t count = std::min(sizes_[last] - index[last], end - begin);
      f(static_cast<const Offsets&>(at), count);
      begin += count;
      if (begin >= end) return;
      move(at, last, -index[last]);
      index[last] = 0;
      for (std::int64_t axis = last - 1;; --axis) {
        move(at, axis, 1);
        if (++index[axis] < sizes_[axis]) break;
        move(at, axis, -index[axis]);
        index[axis] = 0;
      }
    }
  }

  /// walk() over all elements, on all threads.
  template <class F>
  void parallel_walk(std::int64_t grain, F&& f) const {
    parallel_for(0, numel_, grain, [&](std::int64_t begin, std::int64_t end) { walk(begin, end, f); });
  }

 private:
  void move(Offsets& at, std::int64_t axis, std::int64_t steps) const {
    for (std::size_t n = 0; n < N; ++n) at[n] += steps * steps_[axis][n];
  }

  std::int64_t numel_;
  Shape sizes_;
  boost::container::small_vector<Offsets, 6> steps_;
};

/// The loop over tensors of one shape.
template <class... Tensors>
StridedLoop<1 + sizeof...(Tensors)> strided_loop(const Tensor& first, const Tensors&... rest) {
  return {first.shape(), {first.strides(), rest.strides()...}};
}

}  // namespace switchyard::cpu
