#include "autograd/ops/matmul.h"

#include "autograd/node.h"
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

// dx = dy w, dw = dy^T x, dbias = column sums of dy. Saves x and w.
Variable linear(const Variable& x, const Variable& w, const Variable& bias) {
  const bool has_bias = bias.defined();
  Variables inputs = {x, w};
  if (has_bias) inputs.push_back(bias);
  return record("linear", ops::linear(x.data(), w.data(), has_bias ? bias.data() : Tensor{}), inputs,
                [x = x.data(), w = w.data(), x_wanted = x.requires_grad(), w_wanted = w.requires_grad(), has_bias,
                 bias_wanted = bias.requires_grad()](const Tensor& dy) {
                  const Tensor rows = dy.reshape({-1, w.size(0)});  // [n, m]
                  Gradients gradients(has_bias ? 3 : 2);
                  if (x_wanted) gradients[0] = ops::matmul(rows, w).reshape(x.shape());
                  if (w_wanted) gradients[1] = ops::matmul(rows.transpose(0, 1), x.reshape({-1, w.size(1)}));
                  if (bias_wanted) gradients[2] = ops::sum(rows, {0});
                  return gradients;
                });
}

}  // namespace switchyard
