#include "core/ops/norm.h"

#include <cmath>

#include "core/kernels/norm.h"
#include "core/ops/dispatch.h"

namespace switchyard::ops {
namespace {

void check_input(const char* op, const Tensor& x) {
  check(x.defined(), op, ": the tensor is undefined");
  check(is_floating(x.dtype()), op, ": expected a floating dtype (f32, f64, bf16), got ", x.dtype());
  check(x.rank() >= 1 && x.size(-1) >= 1, op, ": needs a last axis with elements, shape is ", x.shape());
}

void check_parameter(const char* op, const char* name, const Tensor& parameter, const Tensor& x) {
  if (!parameter.defined()) return;
  check(parameter.shape() == Shape{x.size(-1)}, op, ": ", name, " has shape ", parameter.shape(), ", expected ",
        Shape{x.size(-1)});
  check(is_floating(parameter.dtype()), op, ": ", name, ": expected a floating dtype (f32, f64, bf16), got ",
        parameter.dtype());
  check(parameter.device() == x.device(), op, ": x on ", x.device(), ", ", name, " on ", parameter.device());
}

void check_epsilon(const char* op, double epsilon) {
  check(std::isfinite(epsilon) && epsilon >= 0, op, ": epsilon ", epsilon, " is not a number of at least 0");
}

void check_gradient(const char* op, const Tensor& dy, const Tensor& x) {
  check_input(op, x);
  check(dy.defined(), op, ": dy is undefined");
  check(dy.shape() == x.shape(), op, ": shapes of dy and x differ: ", dy.shape(), " and ", x.shape());
  check(dy.dtype() == x.dtype(), op, ": dtypes of dy and x differ: ", dy.dtype(), " and ", x.dtype());
  check(dy.device() == x.device(), op, ": dy on ", dy.device(), ", x on ", x.device());
}

void check_saved(const char* op, const char* name, const Tensor& saved, const Tensor& x) {
  check(saved.defined() && saved.numel() * x.size(-1) == x.numel() && saved.dtype() == compute_dtype(x.dtype()) &&
            saved.device() == x.device() && saved.is_contiguous(),
        op, ": ", name, " is not what the forward pass returned for x ", x.shape());
}

/// Dense, seen as rows of the last axis.
Tensor rows(const Tensor& x) { return x.contiguous().view({-1, x.size(-1)}); }

Tensor dense(const Tensor& parameter) { return parameter.defined() ? parameter.contiguous() : parameter; }

/// One number per row: x's shape without its last axis.
Tensor per_row(const Tensor& x) {
  Shape shape = x.shape();
  shape.pop_back();
  return Tensor::empty(shape, compute_dtype(x.dtype()), x.device());
}

}  // namespace

DType compute_dtype(DType dtype) {
  check(is_floating(dtype), "compute_dtype: expected a floating dtype (f32, f64, bf16), got ", dtype);
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

LayerNormResult layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon) {
  check_input("layer_norm", x);
  check_parameter("layer_norm", "weight", weight, x);
  check_parameter("layer_norm", "bias", bias, x);
  check_epsilon("layer_norm", epsilon);
  const LayerNormResult result{Tensor::empty_like(x), per_row(x), per_row(x)};
  if (x.numel() > 0)
    SWITCHYARD_DISPATCH(x.device(), layer_norm, rows(x), dense(weight), dense(bias), epsilon, rows(result.y),
                        result.mean.view({-1}), result.inverse_deviation.view({-1}));
  return result;
}

NormGradients layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, bool has_bias,
                                  const Tensor& mean, const Tensor& inverse_deviation) {
  constexpr const char* kName = "layer_norm backward";
  check_gradient(kName, dy, x);
  check_parameter(kName, "weight", weight, x);
  check_saved(kName, "mean", mean, x);
  check_saved(kName, "inverse_deviation", inverse_deviation, x);
  NormGradients out{Tensor::empty_like(x), {}, {}};
  if (weight.defined()) out.dweight = Tensor::zeros_like(weight);
  if (has_bias) out.dbias = Tensor::zeros({x.size(-1)}, weight.defined() ? weight.dtype() : x.dtype(), x.device());
  if (x.numel() > 0)
    SWITCHYARD_DISPATCH(x.device(), layer_norm_backward, rows(dy), rows(x), dense(weight), mean.view({-1}),
                        inverse_deviation.view({-1}), rows(out.dx), out.dweight, out.dbias);
  return out;
}

RmsNormResult rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  check_input("rms_norm", x);
  check_parameter("rms_norm", "weight", weight, x);
  check_epsilon("rms_norm", epsilon);
  const RmsNormResult result{Tensor::empty_like(x), per_row(x)};
  if (x.numel() > 0)
    SWITCHYARD_DISPATCH(x.device(), rms_norm, rows(x), dense(weight), epsilon, rows(result.y),
                        result.inverse_rms.view({-1}));
  return result;
}

NormGradients rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inverse_rms) {
  constexpr const char* kName = "rms_norm backward";
  check_gradient(kName, dy, x);
  check_parameter(kName, "weight", weight, x);
  check_saved(kName, "inverse_rms", inverse_rms, x);
  NormGradients out{Tensor::empty_like(x), {}, {}};
  if (weight.defined()) out.dweight = Tensor::zeros_like(weight);
  if (x.numel() > 0)
    SWITCHYARD_DISPATCH(x.device(), rms_norm_backward, rows(dy), rows(x), dense(weight), inverse_rms.view({-1}),
                        rows(out.dx), out.dweight);
  return out;
}

}  // namespace switchyard::ops
