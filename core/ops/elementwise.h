#pragma once

#include <string_view>

#include "core/tensor.h"

namespace switchyard::ops {

/// Functions of one element. gelu is x Phi(x); gelu_tanh its tanh approximation; silu is x sigmoid(x);
/// softplus is log(1 + e^x). relu'(0) = abs'(0) = 0.
enum class Unary {
  identity,
  negate,
  exp,
  log,
  sqrt,
  square,
  abs,
  relu,
  gelu,
  gelu_tanh,
  silu,
  sigmoid,
  tanh,
  softplus
};

/// The functions that serve as activations: identity, abs, relu, gelu, gelu_tanh, silu, sigmoid, tanh, softplus.
using Activation = Unary;
/// Inverse of name_of; throws Error on any other text.
Activation activation_from_name(std::string_view name);
std::string_view name_of(Unary op);

/// Functions of two elements.
enum class Binary {
  add,
  subtract,
  multiply,
  divide,
  maximum,
  minimum,
  equal,
  less,
  less_equal,
  logical_or,
  logical_and
};
std::string_view name_of(Binary op);
/// True for the operations whose result is bool.
bool is_comparison(Binary op);

/// Elementwise op(x), floating dtypes. `out_like` shapes throughout: the result is dense.
Tensor unary(Unary op, const Tensor& x);
/// dx = dy op'(x). For relu the output may be passed for x: it has the same sign.
Tensor unary_backward(Unary op, const Tensor& dy, const Tensor& x);
/// Elementwise a op b with broadcasting; both of one dtype and device. Comparisons and logical ops give bool.
Tensor binary(Binary op, const Tensor& a, const Tensor& b);
Tensor add(const Tensor& a, const Tensor& b);
Tensor subtract(const Tensor& a, const Tensor& b);
Tensor multiply(const Tensor& a, const Tensor& b);
Tensor divide(const Tensor& a, const Tensor& b);
/// scale x + shift.
Tensor affine(const Tensor& x, double scale, double shift = 0);
/// condition ? a : b, all three broadcast together; condition is bool.
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b);
/// to += scale from, in place. `from` broadcasts to `to`'s shape; dtypes may differ.
void accumulate(const Tensor& to, const Tensor& from, double scale = 1);

}  // namespace switchyard::ops
