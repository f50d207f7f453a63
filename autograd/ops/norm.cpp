#include "autograd/ops/norm.h"

#include "autograd/node.h"
#include "core/ops/elementwise.h"
#include "core/ops/norm.h"
#include "core/ops/softmax.h"

namespace switchyard {
namespace {

Tensor data_or_none(const Variable& v) { return v.defined() ? v.data() : Tensor{}; }

}  // namespace

// Saves x, weight and two numbers per row; the normalised rows are recomputed from them.
Variable layer_norm(const Variable& x, const Variable& weight, const Variable& bias, double epsilon) {
  const auto result = ops::layer_norm(x.data(), data_or_none(weight), data_or_none(bias), epsilon);
  Variables inputs = {x};
  if (weight.defined()) inputs.push_back(weight);
  if (bias.defined()) inputs.push_back(bias);
  return record("layer_norm", result.y, inputs,
                [x = x.data(), weight = data_or_none(weight), has_bias = bias.defined(), mean = result.mean,
                 inverse_deviation = result.inverse_deviation](const Tensor& dy) {
                  const auto g = ops::layer_norm_backward(dy, x, weight, has_bias, mean, inverse_deviation);
                  Gradients gradients = {g.dx};
                  if (weight.defined()) gradients.push_back(g.dweight);
                  if (has_bias) gradients.push_back(g.dbias);
                  return gradients;
                });
}

Variable rms_norm(const Variable& x, const Variable& weight, double epsilon) {
  const auto result = ops::rms_norm(x.data(), data_or_none(weight), epsilon);
  Variables inputs = {x};
  if (weight.defined()) inputs.push_back(weight);
  return record("rms_norm", result.y, inputs,
                [x = x.data(), weight = data_or_none(weight), inverse_rms = result.inverse_rms](const Tensor& dy) {
                  const auto g = ops::rms_norm_backward(dy, x, weight, inverse_rms);
                  Gradients gradients = {g.dx};
                  if (weight.defined()) gradients.push_back(g.dweight);
                  return gradients;
                });
}

// dx = y (dy - sum(dy y)). Saves y.
Variable softmax(const Variable& x) {
  Tensor y = ops::softmax(x.data());
  return record("softmax", y, {x}, [y](const Tensor& dy) { return Gradients{ops::softmax_backward(dy, y)}; });
}

// dx = dy - exp(y) sum(dy). Saves y.
Variable log_softmax(const Variable& x) {
  Tensor y = ops::log_softmax(x.data());
  return record("log_softmax", y, {x}, [y](const Tensor& dy) { return Gradients{ops::log_softmax_backward(dy, y)}; });
}

// dx = dy softmax(x). Saves x.
Variable logsumexp(const Variable& x) {
  return record("logsumexp", ops::logsumexp(x.data()), {x}, [x = x.data()](const Tensor& dy) {
    return Gradients{ops::multiply(ops::softmax(x), dy.unsqueeze(-1))};
  });
}

}  // namespace switchyard
