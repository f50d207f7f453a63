#include "autograd/ops/matmul.h"

#include "autograd/grad_mode.h"
#include "autograd/node.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/ops/reduce.h"

namespace switchyard {

// da = dy b^T, db = a^T dy, summed over broadcast axes. Saves a and b.
Variable matmul(const Variable& a, const Variable& b) {
  return record(
      "matmul", ops::matmul(a.data(), b.data()), {a, b},
      [a = a.data(), b = b.data(), a_wanted = a.requires_grad(), b_wanted = b.requires_grad()](const Tensor& dy) {
        Gradients gradients(2);
        if (a_wanted) gradients[0] = ops::sum_to(ops::matmul(dy, b.transpose(-1, -2)), a.shape());
        if (b_wanted) gradients[1] = ops::sum_to(ops::matmul(a.transpose(-1, -2), dy), b.shape());
        return gradients;
      });
}

namespace {

/// a b, reshaped; added to `sum` where there is one.
Tensor product(const Tensor& a, const Tensor& b, const Shape& shape, const Tensor& sum) {
  if (!sum.defined()) return ops::matmul(a, b).view(shape);
  ops::matmul_into(a, b, sum.view({a.size(0), b.size(1)}), 1, 1);
  return sum;
}

// dx = dy w, dw = dy^T x, dbias = column sums of dy. Saves x and w, and with relu y. dy of a wider dtype is rounded to
// that of x, as every gradient that enters a product is; sums are accumulated in the wider one.
Variable linear_node(const Variable& x, const Variable& w, const Variable& bias, std::optional<DType> out_dtype,
                     ops::Activation activation) {
  const bool has_bias = bias.defined();
  Variables inputs = {x, w};
  if (has_bias) inputs.push_back(bias);
  Tensor y = ops::linear(x.data(), w.data(), data_or_none(bias), out_dtype, activation);
  const Tensor activated = activation == ops::Activation::identity ? Tensor{} : y;
  return record(
      "linear", std::move(y), inputs,
      [x = x.data(), w = w.data(), x_wanted = x.requires_grad(), w_wanted = w.requires_grad(), has_bias,
       bias_wanted = bias.requires_grad(), activation, activated](const Tensor& dy_activated, const Gradients& sums) {
        const Tensor dy = activated.defined() ? ops::unary_backward(activation, dy_activated, activated) : dy_activated;
        const Tensor rows = dy.to(x.dtype()).reshape({-1, w.size(0)});  // [n, m]
        Gradients gradients(has_bias ? 3 : 2);
        if (x_wanted) gradients[0] = product(rows, w, x.shape(), sums[0]);
        if (w_wanted) {
          const Tensor x_rows = x.reshape({-1, w.size(1)});
          gradients[1] = product(rows.transpose(0, 1), x_rows, w.shape(), sums[1]);
        }
        if (bias_wanted) gradients[2] = ops::sum(rows, {0});
        return gradients;
      });
}

}  // namespace

Variable linear(const Variable& x, const Variable& w, const Variable& bias, std::optional<DType> out_dtype) {
  return linear_node(x, w, bias, out_dtype, ops::Activation::identity);
}

Variable linear_activation(const Variable& x, const Variable& w, const Variable& bias, ops::Activation activation) {
  // relu alone has a derivative that its result tells.
  if (activation == ops::Activation::relu || !grad_enabled()) return linear_node(x, w, bias, {}, activation);
  return activate(activation, linear(x, w, bias));
}

}  // namespace switchyard
