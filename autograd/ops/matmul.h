#pragma once

#include "autograd/variable.h"

namespace switchyard {

/// Matrix product of the last two axes, leading axes broadcast.
Variable matmul(const Variable& a, const Variable& b);
/// x w^T + bias: x [..., k], w [m, k], bias [m] or undefined -> [..., m].
Variable linear(const Variable& x, const Variable& w, const Variable& bias = {});

}  // namespace switchyard
