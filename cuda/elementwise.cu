// Elementwise ops. One read of every operand and one write of the result; the roofline is device memory.

#include "core/kernels/copy.h"
#include "core/kernels/elementwise.h"
#include "cuda/device/activation.cuh"
#include "cuda/elementwise.cuh"

namespace switchyard::cuda {
namespace {

using ops::Binary;
using ops::Unary;

/// dy op'(x).
template <Unary op, class A>
__device__ A derivative(A dy, A x) {
  constexpr A kSqrtHalf = A(0.70710678118654752440), kSqrtTwoOverPi = A(0.79788456080286535588);
  constexpr A kInverseSqrtTwoPi = A(0.39894228040143267794);
  if constexpr (op == Unary::identity) return dy;
  if constexpr (op == Unary::negate) return -dy;
  if constexpr (op == Unary::exp) return dy * exp(x);
  if constexpr (op == Unary::log) return dy / x;
  if constexpr (op == Unary::sqrt) return dy * A(0.5) / sqrt(x);
  if constexpr (op == Unary::square) return dy * A(2) * x;
  if constexpr (op == Unary::abs) return x > A(0) ? dy : (x < A(0) ? -dy : (x == A(0) ? A(0) : x));
  if constexpr (op == Unary::relu) return x <= A(0) ? A(0) : dy;
  if constexpr (op == Unary::gelu)
    return dy * (A(0.5) + A(0.5) * erf(x * kSqrtHalf) + x * kInverseSqrtTwoPi * exp(A(-0.5) * x * x));
  if constexpr (op == Unary::gelu_tanh) {
    const A t = tanh(kSqrtTwoOverPi * (x + A(0.044715) * x * x * x));
    return dy * (A(0.5) * (A(1) + t) + A(0.5) * x * (A(1) - t * t) * kSqrtTwoOverPi * (A(1) + A(3 * 0.044715) * x * x));
  }
  if constexpr (op == Unary::silu) {
    const A s = sigmoid(x);
    return dy * s * (A(1) + x * (A(1) - s));
  }
  if constexpr (op == Unary::sigmoid) {
    const A s = sigmoid(x);
    return dy * s * (A(1) - s);
  }
  if constexpr (op == Unary::tanh) {
    const A t = tanh(x);
    return dy * (A(1) - t * t);
  }
  if constexpr (op == Unary::softplus) return dy * sigmoid(x);
}

template <Unary op>
struct Forward {
  template <class A>
  __device__ A operator()(A x) const {
    return apply_unary<op>(x);
  }
};
template <Unary op>
struct Backward {
  template <class A>
  __device__ A operator()(A dy, A x) const {
    return derivative<op>(dy, x);
  }
};

template <Unary op>
struct UnaryTag {
  static constexpr Unary value = op;
};

template <class F>
void with_unary(Unary op, F&& f) {
  switch (op) {
#define SWITCHYARD_CASE(name) \
  case Unary::name: return f(UnaryTag<Unary::name>{});
    SWITCHYARD_CASE(identity)
    SWITCHYARD_CASE(negate)
    SWITCHYARD_CASE(exp)
    SWITCHYARD_CASE(log)
    SWITCHYARD_CASE(sqrt)
    SWITCHYARD_CASE(square)
    SWITCHYARD_CASE(abs)
    SWITCHYARD_CASE(relu)
    SWITCHYARD_CASE(gelu)
    SWITCHYARD_CASE(gelu_tanh)
    SWITCHYARD_CASE(silu)
    SWITCHYARD_CASE(sigmoid)
    SWITCHYARD_CASE(tanh)
    SWITCHYARD_CASE(softplus)
#undef SWITCHYARD_CASE
  }
}

/// All binary operations in one kernel: they are bound by memory, so the switch costs nothing and saves 50 kernels.
struct BinaryOp {
  Binary op;
  template <class A>
  __device__ A operator()(A a, A b) const {
    switch (op) {
      case Binary::add: return a + b;
      case Binary::subtract: return a - b;
      case Binary::multiply: return a * b;
      case Binary::divide: return a / b;
      case Binary::maximum: return a != a || a > b ? a : b;
      case Binary::minimum: return a != a || a < b ? a : b;
      default: return A(0);
    }
  }
};
struct ComparisonOp {
  Binary op;
  template <class A>
  __device__ bool operator()(A a, A b) const {
    switch (op) {
      case Binary::equal: return a == b;
      case Binary::less: return a < b;
      case Binary::less_equal: return a <= b;
      case Binary::logical_or: return a != A(0) || b != A(0);
      case Binary::logical_and: return a != A(0) && b != A(0);
      default: return false;
    }
  }
};
struct Affine {
  double scale, shift;
  template <class A>
  __device__ A operator()(A x) const {
    return static_cast<A>(scale) * x + static_cast<A>(shift);
  }
};
struct Choose {
  template <class A>
  __device__ A operator()(bool condition, A a, A b) const {
    return condition ? a : b;
  }
};
struct AddScaled {
  double scale;
  template <class A, class B>
  __device__ A operator()(A to, B from) const {
    return to + static_cast<A>(scale) * static_cast<A>(from);
  }
};

}  // namespace

void unary(Unary op, const Tensor& x, const Tensor& out) {
  dispatch_floating(x.dtype(), "unary", [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_unary(op, [&](auto which) { map<T, T>("unary", Forward<decltype(which)::value>{}, out, x); });
  });
}

void unary_backward(Unary op, const Tensor& dy, const Tensor& x, const Tensor& dx) {
  dispatch_floating(x.dtype(), "unary_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_unary(op, [&](auto which) { map<T, T, T>("unary_backward", Backward<decltype(which)::value>{}, dx, dy, x); });
  });
}

void binary(Binary op, const Tensor& a, const Tensor& b, const Tensor& out) {
  dispatch_all(a.dtype(), "binary", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (ops::is_comparison(op)) map<bool, T, T>("binary", ComparisonOp{op}, out, a, b);
    else map<T, T, T>("binary", BinaryOp{op}, out, a, b);
  });
}

void affine(const Tensor& x, double scale, double shift, const Tensor& out) {
  if (!is_floating(x.dtype())) {  // rare and small, as below
    const Tensor wide = x.to(DType::f64);
    map<double, double>("affine", Affine{scale, shift}, wide, wide);
    return copy(wide, out);
  }
  dispatch_floating(x.dtype(), "affine", [&](auto tag) {
    using T = typename decltype(tag)::type;
    map<T, T>("affine", Affine{scale, shift}, out, x);
  });
}

void where(const Tensor& condition, const Tensor& a, const Tensor& b, const Tensor& out) {
  dispatch_all(out.dtype(), "where", [&](auto tag) {
    using T = typename decltype(tag)::type;
    map<T, bool, T, T>("where", Choose{}, out, condition, a, b);
  });
}

void accumulate(const Tensor& to, const Tensor& from, double scale) {
  if (!is_floating(to.dtype()) || !is_floating(from.dtype())) {
    // Counters: rare and small, so conversions through f64 (exact to 2^53) save dozens of kernels.
    const Tensor sum = to.to(DType::f64);
    map<double, double, double>("accumulate", AddScaled{scale}, sum, sum, from.to(DType::f64));
    return copy(sum, to);
  }
  dispatch_floating(to.dtype(), "accumulate", [&](auto to_tag) {
    using T = typename decltype(to_tag)::type;
    dispatch_floating(from.dtype(), "accumulate", [&](auto from_tag) {
      using F = typename decltype(from_tag)::type;
      map<T, T, F>("accumulate", AddScaled{scale}, to, to, from);
    });
  });
}

}  // namespace switchyard::cuda
