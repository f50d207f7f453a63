#include "autograd/ops/norm.h"

#include "autograd/node.h"
#include "core/ops/elementwise.h"
#include "core/ops/norm.h"
#include "core/ops/softmax.h"

namespace switchyard {
namespace {

Variables with_defined(Variables inputs, const Variables& parameters) {
  for (const Variable& parameter : parameters)
    if (parameter.defined()) inputs.push_back(parameter);
  return inputs;
}

/// The gradients for inputs made by with_defined; `terms` is how many tensors were added up to be normalised.
Gradients in_order(const ops::NormGradients& g, std::size_t terms) {
  Gradients gradients(terms, g.dx);
  if (g.dweight.defined()) gradients.push_back(g.dweight);
  if (g.dbias.defined()) gradients.push_back(g.dbias);
  return gradients;
}

}  // namespace

// Norms save what was normalised, the weight and one or two numbers per row; the normalised rows are recomputed.
Variable layer_norm(const Variable& x, const Variable& weight, const Variable& bias, double epsilon) {
  const auto result = ops::layer_norm(x.data(), data_or_none(weight), data_or_none(bias), epsilon);
  return record("layer_norm", result.y, with_defined({x}, {weight, bias}),
                [x = x.data(), weight = data_or_none(weight), has_bias = bias.defined(), mean = result.mean,
                 inverse = result.inverse_deviation](const Tensor& dy) {
                  return in_order(ops::layer_norm_backward(dy, x, weight, has_bias, mean, inverse), 1);
                });
}

Variable rms_norm(const Variable& x, const Variable& weight, double epsilon) {
  const auto result = ops::rms_norm(x.data(), data_or_none(weight), epsilon);
  return record("rms_norm", result.y, with_defined({x}, {weight}),
                [x = x.data(), weight = data_or_none(weight), inverse = result.inverse_rms](const Tensor& dy) {
                  return in_order(ops::rms_norm_backward(dy, x, weight, inverse), 1);
                });
}

// Both terms of the sum get the same gradient: what reached the sum, and what came through the norm.
AddedNorm add_layer_norm(const Variable& x, const Variable& addend, const Variable& weight, const Variable& bias,
                         double epsilon) {
  const auto result =
      ops::layer_norm(x.data(), data_or_none(weight), data_or_none(bias), epsilon, data_or_none(addend));
  const Tensor sum = addend.defined() ? result.sum : x.data();
  const Variables outputs = record_many(
      "add_layer_norm", {sum, result.y}, with_defined({x}, {addend, weight, bias}),
      [sum, weight = data_or_none(weight), has_bias = bias.defined(), mean = result.mean,
       inverse = result.inverse_deviation, terms = addend.defined() ? 2u : 1u](const Gradients& dy) {
        return in_order(ops::layer_norm_backward(dy[1], sum, weight, has_bias, mean, inverse, dy[0]), terms);
      });
  return {outputs[0], outputs[1]};
}

AddedNorm add_rms_norm(const Variable& x, const Variable& addend, const Variable& weight, double epsilon) {
  const auto result = ops::rms_norm(x.data(), data_or_none(weight), epsilon, data_or_none(addend));
  const Tensor sum = addend.defined() ? result.sum : x.data();
  const Variables outputs = record_many(
      "add_rms_norm", {sum, result.y}, with_defined({x}, {addend, weight}),
      [sum, weight = data_or_none(weight), inverse = result.inverse_rms, terms = addend.defined() ? 2u : 1u](
          const Gradients& dy) { return in_order(ops::rms_norm_backward(dy[1], sum, weight, inverse, dy[0]), terms); });
  return {outputs[0], outputs[1]};
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
