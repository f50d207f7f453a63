#pragma once

#include "core/kernels/entry_points.h"
#include "core/ops/elementwise.h"

/// out[b] = alpha a[b] b[b] + beta out[b]. a [batch, m, k], b [batch, k, n], out [batch, m, n]; batch strides are
/// arbitrary (0 repeats); in each matrix one of the last two axes has stride 1; out is row-major. Floating dtypes.
/// With beta = 0 the old contents of out are not read. out has the dtype of a and b, or is f32 where they are bf16.
SWITCHYARD_ENTRY(matmul, const Tensor& a, const Tensor& b, const Tensor& out, double alpha, double beta)
/// out = activation(x w^T (+ bias)). x [n, k] row-major, w [m, k], bias [m] or undefined, out [n, m] row-major, of the
/// dtype of x and w or f32 where they are bf16.
SWITCHYARD_ENTRY(linear, const Tensor& x, const Tensor& w, const Tensor& bias, ops::Activation activation,
                 const Tensor& out)
