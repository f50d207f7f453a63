#pragma once

#include "core/tensor.h"

namespace switchyard::ops {

/// For ops on rows of the last axis: throws Error, in the name of `op`, unless x is floating with elements in that
/// axis.
inline void check_last_axis(const char* op, const Tensor& x) {
  check(x.defined(), op, ": the tensor is undefined");
  check(is_floating(x.dtype()), op, ": expected a floating dtype (f32, f64, bf16), got ", x.dtype());
  check(x.rank() >= 1 && x.size(-1) >= 1, op, ": needs a last axis with elements, shape is ", x.shape());
}

}  // namespace switchyard::ops
