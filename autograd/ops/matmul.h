#pragma once

#include <optional>

#include "autograd/variable.h"

namespace switchyard {

/// Matrix product of the last two axes, leading axes broadcast.
Variable matmul(const Variable& a, const Variable& b);
/// x w^T + bias: x [..., k], w [m, k], bias [m] or undefined -> [..., m]; out_dtype as in ops::linear.
Variable linear(const Variable& x, const Variable& w, const Variable& bias = {}, std::optional<DType> out_dtype = {});

}  // namespace switchyard
