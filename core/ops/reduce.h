#pragma once

#include "core/tensor.h"

namespace switchyard::ops {

enum class Reduction { sum, mean, max };

/// Reduces the given axes (negative count from the end; none means all). The result has x's dtype, but sums of i32, i64
/// and bool are i64; mean takes floating dtypes only. Floating sums are at least as exact as float, and run in an order
/// that does not depend on the number of threads. max of no element throws; NaN counts as the largest.
Tensor reduce(Reduction op, const Tensor& x, const Shape& axes = {}, bool keep_axes = false);
Tensor sum(const Tensor& x, const Shape& axes = {}, bool keep_axes = false);
Tensor mean(const Tensor& x, const Shape& axes = {}, bool keep_axes = false);
/// Sums out the axes that broadcasting `shape` to x's shape added or repeated: the backward of broadcast_to.
Tensor sum_to(const Tensor& x, const Shape& shape);
/// Position (i64) of the largest element of the last axis, the first of equals; NaN counts as the largest.
Tensor argmax(const Tensor& x);
/// Number of NaN and infinite elements, i64 [1], left on the device.
Tensor count_nonfinite(const Tensor& x);

}  // namespace switchyard::ops
