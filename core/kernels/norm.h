#pragma once

#include "core/kernels/entry_points.h"

// Rows of x [n, d], all dense. weight and bias [d] or undefined. mean and inverse_deviation [n] hold what the
// backward pass needs, in the compute dtype (f32, or f64 for f64). Where `addend` is defined, `sum` receives x + addend
// and is what is normalised; dsum, where defined, is added to dx.

SWITCHYARD_ENTRY(layer_norm, const Tensor& x, const Tensor& addend, const Tensor& weight, const Tensor& bias,
                 double epsilon, const Tensor& sum, const Tensor& y, const Tensor& mean,
                 const Tensor& inverse_deviation)
/// dweight and dbias are undefined where not wanted.
SWITCHYARD_ENTRY(layer_norm_backward, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                 const Tensor& inverse_deviation, const Tensor& dsum, const Tensor& dx, const Tensor& dweight,
                 const Tensor& dbias)
SWITCHYARD_ENTRY(rms_norm, const Tensor& x, const Tensor& addend, const Tensor& weight, double epsilon,
                 const Tensor& sum, const Tensor& y, const Tensor& inverse_rms)
SWITCHYARD_ENTRY(rms_norm_backward, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                 const Tensor& dsum, const Tensor& dx, const Tensor& dweight)
