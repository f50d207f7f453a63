#pragma once

#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <initializer_list>
#include <ostream>

#include "core/error.h"

namespace switchyard {

/// A short list of sizes, strides or axes. Up to six axes need no heap allocation. Prints as [2, 3].
class Shape : public boost::container::small_vector<std::int64_t, 6> {
 public:
  using Base = boost::container::small_vector<std::int64_t, 6>;
  using Base::Base;
  Shape(std::initializer_list<std::int64_t> sizes) : Base(sizes) {}

  std::int64_t rank() const { return static_cast<std::int64_t>(size()); }
  /// Product of all sizes; 1 for a scalar.
  std::int64_t numel() const;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape);

/// Strides, in elements, of a dense row-major tensor of this shape.
Shape contiguous_strides(const Shape& shape);

/// Maps a possibly negative axis to 0..rank-1; throws Error naming `op` when it is out of range.
std::int64_t normalize_axis(const char* op, std::int64_t axis, std::int64_t rank);

/// The shape two shapes broadcast to (NumPy rules); throws Error naming `op` when they do not.
Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b);

}  // namespace switchyard
