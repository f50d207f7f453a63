#pragma once

#include "core/tensor.h"

namespace switchyard::ops {

/// A dtype's compute dtype: f64 for f64, f32 for f32 and bf16.
DType compute_dtype(DType dtype);

struct LayerNormResult {
  Tensor y, mean, inverse_deviation;
};
/// y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis. weight, bias [d] or undefined.
LayerNormResult layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon);

struct NormGradients {
  Tensor dx, dweight, dbias;  ///< dweight, dbias undefined where the parameter is
};
NormGradients layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, bool has_bias,
                                  const Tensor& mean, const Tensor& inverse_deviation);

struct RmsNormResult {
  Tensor y, inverse_rms;
};
/// y = x / sqrt(mean(x^2) + epsilon) * weight over the last axis. weight [d] or undefined.
RmsNormResult rms_norm(const Tensor& x, const Tensor& weight, double epsilon);
NormGradients rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inverse_rms);

}  // namespace switchyard::ops
