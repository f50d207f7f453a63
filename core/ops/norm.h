#pragma once

#include "core/tensor.h"

namespace switchyard::ops {

/// A dtype's compute dtype: f64 for f64, f32 for f32 and bf16.
DType compute_dtype(DType dtype);

struct LayerNormResult {
  Tensor y, mean, inverse_deviation;
  Tensor sum;  ///< x + addend; undefined without an addend
};
/// y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis. weight, bias [d] or undefined. With an
/// addend of x's shape, x + addend is computed in the same pass and normalised in place of x.
LayerNormResult layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon,
                           const Tensor& addend = {});

struct NormGradients {
  Tensor dx, dweight, dbias;  ///< dweight, dbias undefined where the parameter is
};
/// x is what was normalised. dsum, where defined, is what reaches x on other ways: it is added to dx.
NormGradients layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, bool has_bias,
                                  const Tensor& mean, const Tensor& inverse_deviation, const Tensor& dsum = {});

struct RmsNormResult {
  Tensor y, inverse_rms;
  Tensor sum;  ///< x + addend; undefined without an addend
};
/// y = x / sqrt(mean(x^2) + epsilon) * weight over the last axis. weight [d] or undefined; addend as in layer_norm.
RmsNormResult rms_norm(const Tensor& x, const Tensor& weight, double epsilon, const Tensor& addend = {});
NormGradients rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                                const Tensor& dsum = {});

}  // namespace switchyard::ops
