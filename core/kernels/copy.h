#pragma once

#include "core/kernels/entry_points.h"

// Same shape, any strides and dtypes, one device.
SWITCHYARD_ENTRY(copy, const Tensor& from, const Tensor& to)
SWITCHYARD_ENTRY(fill, const Tensor& to, double value)
