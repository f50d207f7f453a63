#include "autograd/ops/elementwise.h"

#include "autograd/node.h"
#include "core/ops/random.h"
#include "core/ops/reduce.h"

namespace switchyard {

using ops::Unary;

// dx = dy op'(x). Saves x; for relu the output, which the caller keeps anyway, serves as well.
Variable unary(Unary op, const Variable& x) {
  Tensor y = ops::unary(op, x.data());
  const Tensor saved = op == Unary::relu ? y : x.data();
  return record("unary", y, {x},
                [op, saved](const Tensor& dy) { return Gradients{ops::unary_backward(op, dy, saved)}; });
}

Variable activate(ops::Activation activation, const Variable& x) {
  return activation == Unary::identity ? x : unary(activation, x);
}

// dx = dy y. Saves y.
Variable exp(const Variable& x) {
  Tensor y = ops::unary(Unary::exp, x.data());
  return record("exp", y, {x}, [y](const Tensor& dy) { return Gradients{ops::multiply(dy, y)}; });
}

Variable log(const Variable& x) { return unary(Unary::log, x); }
Variable relu(const Variable& x) { return unary(Unary::relu, x); }
Variable sigmoid(const Variable& x) { return unary(Unary::sigmoid, x); }
Variable tanh(const Variable& x) { return unary(Unary::tanh, x); }

Variable operator+(const Variable& a, const Variable& b) {
  return record("add", ops::add(a.data(), b.data()), {a, b}, [sa = a.shape(), sb = b.shape()](const Tensor& dy) {
    return Gradients{ops::sum_to(dy, sa), ops::sum_to(dy, sb)};
  });
}

Variable operator-(const Variable& a, const Variable& b) {
  return record("subtract", ops::subtract(a.data(), b.data()), {a, b},
                [sa = a.shape(), sb = b.shape(), b_wanted = b.requires_grad()](const Tensor& dy) {
                  return Gradients{ops::sum_to(dy, sa), b_wanted ? ops::sum_to(ops::affine(dy, -1), sb) : Tensor{}};
                });
}

// da = dy b, db = dy a. Saves the operands whose partner wants a gradient.
Variable operator*(const Variable& a, const Variable& b) {
  return record("multiply", ops::multiply(a.data(), b.data()), {a, b},
                [a_saved = b.requires_grad() ? a.data() : Tensor{}, b_saved = a.requires_grad() ? b.data() : Tensor{},
                 sa = a.shape(), sb = b.shape()](const Tensor& dy) {
                  return Gradients{b_saved.defined() ? ops::sum_to(ops::multiply(dy, b_saved), sa) : Tensor{},
                                   a_saved.defined() ? ops::sum_to(ops::multiply(dy, a_saved), sb) : Tensor{}};
                });
}

// da = dy / b, db = -dy y / b. Saves b, and y where b wants a gradient.
Variable operator/(const Variable& a, const Variable& b) {
  Tensor y = ops::divide(a.data(), b.data());
  return record("divide", y, {a, b},
                [b_saved = b.data(), y_saved = b.requires_grad() ? y : Tensor{}, sa = a.shape()](const Tensor& dy) {
                  const Tensor da = ops::divide(dy, b_saved);
                  const Tensor db = y_saved.defined()
                                        ? ops::sum_to(ops::affine(ops::multiply(da, y_saved), -1), b_saved.shape())
                                        : Tensor{};
                  return Gradients{ops::sum_to(da, sa), db};
                });
}

Variable operator*(const Variable& x, double factor) {
  return record("scale", ops::affine(x.data(), factor), {x},
                [factor](const Tensor& dy) { return Gradients{ops::affine(dy, factor)}; });
}

Variable operator*(double factor, const Variable& x) { return x * factor; }

Variable operator+(const Variable& x, double term) {
  return record("shift", ops::affine(x.data(), 1, term), {x}, [](const Tensor& dy) { return Gradients{dy}; });
}

Variable operator-(const Variable& x) { return x * -1.0; }

Variable where(const Tensor& condition, const Variable& a, const Variable& b) {
  return record("where", ops::where(condition, a.data(), b.data()), {a, b},
                [condition, sa = a.shape(), sb = b.shape()](const Tensor& dy) {
                  const Tensor zero = Tensor::scalar(0, dy.dtype(), dy.device());
                  return Gradients{ops::sum_to(ops::where(condition, dy, zero), sa),
                                   ops::sum_to(ops::where(condition, zero, dy), sb)};
                });
}

// The mask is made again from its random numbers instead of being saved.
Variable dropout(const Variable& x, double probability) {
  if (probability == 0) return x;
  const RandomStream stream = default_generator(x.device()).next(x.numel());
  return record("dropout", ops::dropout(x.data(), stream, probability), {x},
                [stream, probability](const Tensor& dy) { return Gradients{ops::dropout(dy, stream, probability)}; });
}

Variable cast(const Variable& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  check(is_floating(dtype), "cast: expected a floating dtype, got ", dtype, "; use data().to() for integers");
  return record("cast", x.data().to(dtype), {x},
                [from = x.dtype()](const Tensor& dy) { return Gradients{dy.to(from)}; });
}

}  // namespace switchyard
