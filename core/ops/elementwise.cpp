#include "core/ops/elementwise.h"

#include <array>
#include <utility>

#include "core/kernels/elementwise.h"
#include "core/ops/dispatch.h"

namespace switchyard::ops {
namespace {

constexpr std::array<std::string_view, 14> kUnaryNames = {"identity", "negate",  "exp",  "log",     "sqrt",
                                                          "square",   "abs",     "relu", "gelu",    "gelu_tanh",
                                                          "silu",     "sigmoid", "tanh", "softplus"};
constexpr std::array<std::string_view, 11> kBinaryNames = {"add",        "subtract",   "multiply",   "divide",
                                                           "maximum",    "minimum",    "equal",      "less",
                                                           "less_equal", "logical_or", "logical_and"};
constexpr std::array kActivations = {Unary::identity, Unary::abs,     Unary::relu, Unary::gelu,    Unary::gelu_tanh,
                                     Unary::silu,     Unary::sigmoid, Unary::tanh, Unary::softplus};

void check_same_device(std::string_view op, const Tensor& a, const Tensor& b) {
  check(a.device() == b.device(), op, ": operands on ", a.device(), " and ", b.device());
}

/// The tensor seen in the given shape, without the cost of a broadcast where it has it already.
Tensor in_shape(const Tensor& x, const Shape& shape) { return x.shape() == shape ? x : x.broadcast_to(shape); }

}  // namespace

std::string_view name_of(Unary op) { return kUnaryNames.at(static_cast<std::size_t>(op)); }

std::string_view name_of(Binary op) { return kBinaryNames.at(static_cast<std::size_t>(op)); }

Activation activation_from_name(std::string_view name) {
  for (const Unary op : kActivations)
    if (name_of(op) == name) return op;
  fail("activation: \"", name, "\" is not one of identity, abs, relu, gelu, gelu_tanh, silu, sigmoid, tanh, softplus");
}

bool is_comparison(Binary op) { return op >= Binary::equal; }

Tensor unary(Unary op, const Tensor& x) {
  check(x.defined(), name_of(op), ": the tensor is undefined");
  check(is_floating(x.dtype()), name_of(op), ": expected a floating dtype (f32, f64, bf16), got ", x.dtype());
  const Tensor out = Tensor::empty_like(x);
  if (out.numel() > 0) SWITCHYARD_DISPATCH(x.device(), unary, op, x, out);
  return out;
}

Tensor unary_backward(Unary op, const Tensor& dy, const Tensor& x) {
  check(dy.defined() && x.defined(), name_of(op), " backward: an undefined tensor");
  check(is_floating(x.dtype()), name_of(op), " backward: expected a floating dtype (f32, f64, bf16), got ", x.dtype());
  check(dy.dtype() == x.dtype(), name_of(op), " backward: dtypes differ: ", dy.dtype(), " and ", x.dtype());
  check(dy.shape() == x.shape(), name_of(op), " backward: shapes differ: ", dy.shape(), " and ", x.shape());
  check_same_device(name_of(op), dy, x);
  const Tensor dx = Tensor::empty_like(x);
  if (dx.numel() > 0) SWITCHYARD_DISPATCH(x.device(), unary_backward, op, dy, x, dx);
  return dx;
}

Tensor binary(Binary op, const Tensor& a, const Tensor& b) {
  const std::string_view name = name_of(op);
  check(a.defined() && b.defined(), name, ": an undefined tensor");
  check(a.dtype() == b.dtype(), name, ": dtypes differ: ", a.dtype(), " and ", b.dtype());
  check(is_comparison(op) || a.dtype() != DType::boolean, name, ": expected numbers, got bool");
  check(op < Binary::logical_or || a.dtype() == DType::boolean, name, ": expected bool, got ", a.dtype());
  check_same_device(name, a, b);
  const Shape shape = a.shape() == b.shape() ? a.shape() : broadcast_shapes(name.data(), a.shape(), b.shape());
  const Tensor out = Tensor::empty(shape, is_comparison(op) ? DType::boolean : a.dtype(), a.device());
  if (out.numel() > 0) SWITCHYARD_DISPATCH(a.device(), binary, op, in_shape(a, shape), in_shape(b, shape), out);
  return out;
}

Tensor add(const Tensor& a, const Tensor& b) { return binary(Binary::add, a, b); }

Tensor subtract(const Tensor& a, const Tensor& b) { return binary(Binary::subtract, a, b); }

Tensor multiply(const Tensor& a, const Tensor& b) { return binary(Binary::multiply, a, b); }

Tensor divide(const Tensor& a, const Tensor& b) { return binary(Binary::divide, a, b); }

Tensor affine(const Tensor& x, double scale, double shift) {
  check(x.defined(), "affine: the tensor is undefined");
  check(x.dtype() != DType::boolean, "affine: expected numbers, got bool");
  const Tensor out = Tensor::empty_like(x);
  if (out.numel() > 0) SWITCHYARD_DISPATCH(x.device(), affine, x, scale, shift, out);
  return out;
}

Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  check(condition.defined() && a.defined() && b.defined(), "where: an undefined tensor");
  check(condition.dtype() == DType::boolean, "where: expected a bool condition, got ", condition.dtype());
  check(a.dtype() == b.dtype(), "where: dtypes differ: ", a.dtype(), " and ", b.dtype());
  check_same_device("where", condition, a);
  check_same_device("where", a, b);
  const Shape shape = broadcast_shapes("where", condition.shape(), broadcast_shapes("where", a.shape(), b.shape()));
  const Tensor out = Tensor::empty(shape, a.dtype(), a.device());
  if (out.numel() > 0)
    SWITCHYARD_DISPATCH(a.device(), where, in_shape(condition, shape), in_shape(a, shape), in_shape(b, shape), out);
  return out;
}

void accumulate(const Tensor& to, const Tensor& from, double scale) {
  check(to.defined() && from.defined(), "accumulate: an undefined tensor");
  check(to.dtype() != DType::boolean, "accumulate: cannot add to a bool tensor");
  check_same_device("accumulate", to, from);
  for (std::int64_t i = 0; i < to.rank(); ++i)
    check(to.size(i) <= 1 || to.stride(i) != 0, "accumulate: the target repeats elements: shape ", to.shape(),
          " with strides ", to.strides());
  const Tensor source = in_shape(from, to.shape());
  if (to.numel() > 0) SWITCHYARD_DISPATCH(to.device(), accumulate, to, source, scale);
}

}  // namespace switchyard::ops
