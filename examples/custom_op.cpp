// An op of one's own in one file: forward and backward in a small class, checked against central differences, then used
// like any other.
//
//   build/cpu/bin/custom_op
//   gradcheck: ok (worst error 1.26782e-11)
//   swish of Tensor(f64 [2, 3] [[-2, -0.5, 0], [0.7, 2, 3]])
//   is Tensor(f64 [2, 3] [[-0.094852, -0.16041, 0], [0.51854, 1.9051, 2.967]])
#include <cmath>
#include <iostream>

#include "autograd/gradcheck.h"
#include "autograd/node.h"
#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"

using namespace switchyard;

// swish(x) = x s(b x) with s the logistic function and a trained b;  y' = s + b y (1 - s),  dy/db = x y (1 - s).
struct Swish : CustomOp {
  Tensor x, b, y, s;  // saved for the backward pass

  const char* name() const override { return "swish"; }

  std::vector<Tensor> forward(const std::vector<Tensor>& inputs) override {
    x = inputs[0];
    b = inputs[1];
    s = ops::unary(ops::Unary::sigmoid, ops::multiply(b, x));
    y = ops::multiply(x, s);
    return {y};
  }

  Gradients backward(const Gradients& dy) override {
    const Tensor rest = ops::multiply(y, ops::affine(s, -1, 1));  // y (1 - s)
    const Tensor dx = ops::multiply(dy[0], ops::add(s, ops::multiply(b, rest)));
    const Tensor db = ops::multiply(dy[0], ops::multiply(x, rest));
    return {dx, ops::sum_to(db, b.shape())};
  }
};

Variable swish(const Variable& x, const Variable& b) { return apply_op(std::make_shared<Swish>(), {x, b})[0]; }

int main() {
  const Variable x(Tensor::from<double>({-2, -0.5, 0, 0.7, 2, 3}, {2, 3}), true);
  const Variable b(Tensor::from<double>({1.5}, {1}), true);
  const GradcheckResult result = gradcheck([](const Variables& in) { return swish(in[0], in[1]); }, {x, b});
  std::cout << "gradcheck: " << (result ? "ok" : result.message) << " (worst error " << result.worst << ")\n"
            << "swish of " << x.data() << "\nis " << swish(x, b).data() << std::endl;
  return result ? 0 : 1;
}
