#pragma once

#include <optional>

#include "core/ops/elementwise.h"

namespace switchyard::ops {

/// Matrix product of the last two axes, leading axes broadcast: [..., m, k] x [..., k, n] -> [..., m, n].
/// Transposed views are used in place. Floating dtypes, accumulated in float (double for f64).
Tensor matmul(const Tensor& a, const Tensor& b);
/// out = alpha a b + beta out for a [m, k], b [k, n], out [m, n] with rows of stride 1. out has the dtype of a and b,
/// or is f32 where they are bf16.
void matmul_into(const Tensor& a, const Tensor& b, const Tensor& out, double alpha = 1, double beta = 0);
/// activation(x w^T + bias): x [..., k], w [m, k], bias [m] or undefined -> [..., m]. The result has the dtype of x, or
/// with `out_dtype` is f32 for bf16 operands: the sums as they were accumulated, not rounded.
Tensor linear(const Tensor& x, const Tensor& w, const Tensor& bias = {}, std::optional<DType> out_dtype = {},
              Activation activation = Activation::identity);

}  // namespace switchyard::ops
