#pragma once

#include "core/kernels/entry_points.h"
#include "core/ops/elementwise.h"

// All operands have the output's shape (broadcast axes have stride 0); any strides.

SWITCHYARD_ENTRY(unary, ops::Unary op, const Tensor& x, const Tensor& out)
SWITCHYARD_ENTRY(unary_backward, ops::Unary op, const Tensor& dy, const Tensor& x, const Tensor& dx)
/// out has a's dtype, or bool for comparisons.
SWITCHYARD_ENTRY(binary, ops::Binary op, const Tensor& a, const Tensor& b, const Tensor& out)
/// out = scale x + shift.
SWITCHYARD_ENTRY(affine, const Tensor& x, double scale, double shift, const Tensor& out)
/// out = condition ? a : b.
SWITCHYARD_ENTRY(where, const Tensor& condition, const Tensor& a, const Tensor& b, const Tensor& out)
/// to += scale from.
SWITCHYARD_ENTRY(accumulate, const Tensor& to, const Tensor& from, double scale)
