#pragma once

#include <optional>

#include "autograd/variable.h"
#include "core/ops/elementwise.h"

namespace switchyard {

/// Matrix product of the last two axes, leading axes broadcast.
Variable matmul(const Variable& a, const Variable& b);
/// x w^T + bias: x [..., k], w [m, k], bias [m] or undefined -> [..., m]; out_dtype as in ops::linear.
Variable linear(const Variable& x, const Variable& w, const Variable& bias = {}, std::optional<DType> out_dtype = {});
/// activation(x w^T + bias). relu is applied as the product is written; only the result is kept for its derivative.
Variable linear_activation(const Variable& x, const Variable& w, const Variable& bias, ops::Activation activation);

}  // namespace switchyard
