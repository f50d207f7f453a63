#pragma once

#include "core/ops/elementwise.h"

namespace switchyard::cuda {

template <class A>
__device__ inline A sigmoid(A x) {
  return A(1) / (A(1) + exp(-x));
}

/// op(x).
template <ops::Unary op, class A>
__device__ inline A apply_unary(A x) {
  using ops::Unary;
  constexpr A kSqrtHalf = A(0.70710678118654752440), kSqrtTwoOverPi = A(0.79788456080286535588);
  if constexpr (op == Unary::identity) return x;
  if constexpr (op == Unary::negate) return -x;
  if constexpr (op == Unary::exp) return exp(x);
  if constexpr (op == Unary::log) return log(x);
  if constexpr (op == Unary::sqrt) return sqrt(x);
  if constexpr (op == Unary::square) return x * x;
  if constexpr (op == Unary::abs) return fabs(x);
  if constexpr (op == Unary::relu) return x <= A(0) ? A(0) : x;  // NaN stays
  if constexpr (op == Unary::gelu) return x * (A(0.5) + A(0.5) * erf(x * kSqrtHalf));
  if constexpr (op == Unary::gelu_tanh)
    return A(0.5) * x * (A(1) + tanh(kSqrtTwoOverPi * (x + A(0.044715) * x * x * x)));
  if constexpr (op == Unary::silu) return x * sigmoid(x);
  if constexpr (op == Unary::sigmoid) return sigmoid(x);
  if constexpr (op == Unary::tanh) return tanh(x);
  if constexpr (op == Unary::softplus) return (x > A(0) ? x : A(0)) + log1p(exp(-fabs(x)));
}

/// The same chosen at run time, for epilogues. Out of line: inlined for every element of a tile, the functions would
/// outgrow the instruction cache.
template <class A>
__device__ __noinline__ A apply_rare_unary(ops::Unary op, A x) {
  using ops::Unary;
  switch (op) {
    case Unary::relu: return apply_unary<Unary::relu>(x);
    case Unary::gelu: return apply_unary<Unary::gelu>(x);
    case Unary::gelu_tanh: return apply_unary<Unary::gelu_tanh>(x);
    case Unary::silu: return apply_unary<Unary::silu>(x);
    case Unary::sigmoid: return apply_unary<Unary::sigmoid>(x);
    case Unary::tanh: return apply_unary<Unary::tanh>(x);
    case Unary::softplus: return apply_unary<Unary::softplus>(x);
    case Unary::abs: return apply_unary<Unary::abs>(x);
    case Unary::negate: return -x;
    case Unary::exp: return exp(x);
    case Unary::log: return log(x);
    case Unary::sqrt: return sqrt(x);
    case Unary::square: return x * x;
    default: return x;
  }
}

}  // namespace switchyard::cuda
