#include "core/shape.h"

#include <algorithm>

namespace switchyard {

std::int64_t Shape::numel() const {
  std::int64_t count = 1;
  for (const std::int64_t size : *this) count *= size;
  return count;
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (std::size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  return out << ']';
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (std::int64_t i = shape.rank() - 2; i >= 0; --i) strides[i] = strides[i + 1] * shape[i + 1];
  return strides;
}

std::int64_t normalize_axis(const char* op, std::int64_t axis, std::int64_t rank) {
  check(axis >= -rank && axis < rank, op, ": axis ", axis, " is outside a tensor of rank ", rank);
  return axis < 0 ? axis + rank : axis;
}

Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b) {
  const std::int64_t rank = std::max(a.rank(), b.rank());
  Shape out(static_cast<std::size_t>(rank), 1);
  for (std::int64_t i = 1; i <= rank; ++i) {
    const std::int64_t size_a = i <= a.rank() ? a[a.rank() - i] : 1;
    const std::int64_t size_b = i <= b.rank() ? b[b.rank() - i] : 1;
    check(size_a == size_b || size_a == 1 || size_b == 1, op, ": shapes do not broadcast: ", a, " and ", b);
    out[rank - i] = size_a == 1 ? size_b : size_a;
  }
  return out;
}

}  // namespace switchyard
