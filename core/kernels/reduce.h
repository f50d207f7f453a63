#pragma once

#include "core/kernels/entry_points.h"
#include "core/ops/reduce.h"

/// x: any strides, rank r. out: rank r, with size 1 on every reduced axis, dense.
SWITCHYARD_ENTRY(reduce, ops::Reduction op, const Tensor& x, const Tensor& out)
/// Position of the largest element of the last axis (the first of equals). x [..., n], out i64 [...], dense.
SWITCHYARD_ENTRY(argmax, const Tensor& x, const Tensor& out)
/// out i64 [1]: number of NaN and infinite elements of a floating tensor.
SWITCHYARD_ENTRY(count_nonfinite, const Tensor& x, const Tensor& out)
