#pragma once

#include "core/tensor.h"

namespace switchyard::ops {

/// Writes source, broadcast to `to`'s shape and converted to its dtype, into `to`. Any strides, any devices.
/// Converting to bool gives value != 0. Throws Error when the shapes do not broadcast.
void copy(const Tensor& source, const Tensor& to);
/// Sets every element to `value`, converted to the dtype.
void fill(const Tensor& to, double value);

}  // namespace switchyard::ops
