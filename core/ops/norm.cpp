#include "core/ops/norm.h"

#include <cmath>

#include "core/kernels/norm.h"
#include "core/ops/check.h"
#include "core/ops/dispatch.h"

namespace switchyard::ops {
namespace {

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

/// `other` is a tensor like x.
void check_like(const char* op, const char* name, const Tensor& other, const Tensor& x) {
  check(other.defined(), op, ": ", name, " is undefined");
  check(other.shape() == x.shape(), op, ": shapes of ", name, " and x differ: ", other.shape(), " and ", x.shape());
  check(other.dtype() == x.dtype(), op, ": dtypes of ", name, " and x differ: ", other.dtype(), " and ", x.dtype());
  check(other.device() == x.device(), op, ": ", name, " on ", other.device(), ", x on ", x.device());
}

void check_gradients(const char* op, const Tensor& dy, const Tensor& x, const Tensor& dsum) {
  check_last_axis(op, x);
  check_like(op, "dy", dy, x);
  if (dsum.defined()) check_like(op, "dsum", dsum, x);
}

void check_saved(const char* op, const char* name, const Tensor& saved, const Tensor& x) {
  check(saved.defined() && saved.numel() * x.size(-1) == x.numel() && saved.dtype() == compute_dtype(x.dtype()) &&
            saved.device() == x.device() && saved.is_contiguous(),
        op, ": ", name, " is not what the forward pass returned for x ", x.shape());
}

/// Dense, seen as rows of the last axis; an undefined tensor stays one.
Tensor rows(const Tensor& x) { return x.defined() ? x.contiguous().view({-1, x.size(-1)}) : x; }

/// One number per row: x's shape without its last axis.
Tensor per_row(const Tensor& x) {
  Shape shape = x.shape();
  shape.pop_back();
  return Tensor::empty(shape, compute_dtype(x.dtype()), x.device());
}

/// Room for the gradients; without rows, those of the parameters are 0.
NormGradients empty_gradients(const Tensor& x, const Tensor& weight, bool has_bias) {
  const auto parameter = [&](bool wanted) {
    if (!wanted) return Tensor{};
    const DType dtype = weight.defined() ? weight.dtype() : x.dtype();
    return x.numel() > 0 ? Tensor::empty({x.size(-1)}, dtype, x.device())
                         : Tensor::zeros({x.size(-1)}, dtype, x.device());
  };
  return {Tensor::empty_like(x), parameter(weight.defined()), parameter(has_bias)};
}

}  // namespace

DType compute_dtype(DType dtype) {
  check(is_floating(dtype), "compute_dtype: expected a floating dtype (f32, f64, bf16), got ", dtype);
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

LayerNormResult layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon,
                           const Tensor& addend) {
  check_last_axis("layer_norm", x);
  check_parameter("layer_norm", "weight", weight, x);
  check_parameter("layer_norm", "bias", bias, x);
  check_epsilon("layer_norm", epsilon);
  if (addend.defined()) check_like("layer_norm", "addend", addend, x);
  const LayerNormResult result{Tensor::empty_like(x), per_row(x), per_row(x),
                               addend.defined() ? Tensor::empty_like(x) : Tensor{}};
  if (x.numel() > 0)
    SWITCHYARD_DISPATCH(x.device(), layer_norm, rows(x), rows(addend), dense(weight), dense(bias), epsilon,
                        rows(result.sum), rows(result.y), result.mean.view({-1}), result.inverse_deviation.view({-1}));
  return result;
}

NormGradients layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, bool has_bias,
                                  const Tensor& mean, const Tensor& inverse_deviation, const Tensor& dsum) {
  constexpr const char* kName = "layer_norm backward";
  check_gradients(kName, dy, x, dsum);
  check_parameter(kName, "weight", weight, x);
  check_saved(kName, "mean", mean, x);
  check_saved(kName, "inverse_deviation", inverse_deviation, x);
  const NormGradients out = empty_gradients(x, weight, has_bias);
  if (x.numel() > 0)
    SWITCHYARD_DISPATCH(x.device(), layer_norm_backward, rows(dy), rows(x), dense(weight), mean.view({-1}),
                        inverse_deviation.view({-1}), rows(dsum), rows(out.dx), out.dweight, out.dbias);
  return out;
}

RmsNormResult rms_norm(const Tensor& x, const Tensor& weight, double epsilon, const Tensor& addend) {
  check_last_axis("rms_norm", x);
  check_parameter("rms_norm", "weight", weight, x);
  check_epsilon("rms_norm", epsilon);
  if (addend.defined()) check_like("rms_norm", "addend", addend, x);
  const RmsNormResult result{Tensor::empty_like(x), per_row(x), addend.defined() ? Tensor::empty_like(x) : Tensor{}};
  if (x.numel() > 0)
    SWITCHYARD_DISPATCH(x.device(), rms_norm, rows(x), rows(addend), dense(weight), epsilon, rows(result.sum),
                        rows(result.y), result.inverse_rms.view({-1}));
  return result;
}

NormGradients rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                                const Tensor& dsum) {
  constexpr const char* kName = "rms_norm backward";
  check_gradients(kName, dy, x, dsum);
  check_parameter(kName, "weight", weight, x);
  check_saved(kName, "inverse_rms", inverse_rms, x);
  const NormGradients out = empty_gradients(x, weight, false);
  if (x.numel() > 0)
    SWITCHYARD_DISPATCH(x.device(), rms_norm_backward, rows(dy), rows(x), dense(weight), inverse_rms.view({-1}),
                        rows(dsum), rows(out.dx), out.dweight);
  return out;
}

}  // namespace switchyard::ops
