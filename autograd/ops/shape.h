#pragma once

#include "autograd/variable.h"

namespace switchyard {

// Views and copies, as the Tensor members of the same names; the gradient is mapped back.
Variable reshape(const Variable& x, const Shape& shape);
Variable transpose(const Variable& x, std::int64_t axis_a, std::int64_t axis_b);
Variable permute(const Variable& x, const Shape& axes);
/// Elements begin .. end - 1 of one axis.
Variable slice(const Variable& x, std::int64_t axis, std::int64_t begin, std::int64_t end);
Variable broadcast_to(const Variable& x, const Shape& shape);
/// Joins along one axis.
Variable concat(const Variables& parts, std::int64_t axis);

}  // namespace switchyard
