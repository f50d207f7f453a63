#include "core/kernels/elementwise.h"

#include <tuple>
#include <type_traits>
#include <utility>

#include "core/cpu/blocks.h"
#include "core/cpu/strided.h"
#include "core/cpu/unary.h"
#include "core/cpu/vector_math.h"

namespace switchyard::cpu {
namespace {

using ops::Binary;
using ops::Unary;

constexpr std::int64_t kGrain = 16384;

template <class A>
struct As {
  const Tensor& tensor;
};

/// Calls kernel(count, out, in...) on dense blocks of the compute types.
template <class Out, class... In, class Kernel>
void for_blocks(Kernel kernel, As<Out> out, As<In>... in) {
  const auto loop = strided_loop(out.tensor, in.tensor...);
  const auto& stride = loop.inner_strides();
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    parallel_for(0, loop.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
      Writer<Out> writer(Operand{out.tensor, stride[0]});
      std::tuple<Reader<In>...> readers(Operand{in.tensor, stride[I + 1]}...);
      loop.walk(begin, end, [&](const auto& at, std::int64_t run) {
        for (std::int64_t done = 0; done < run; done += kBlock) {
          const std::int64_t count = std::min(kBlock, run - done);
          const std::int64_t to = at[0] + done * stride[0];
          kernel(count, writer.target(to), std::get<I>(readers).read(at[I + 1] + done * stride[I + 1], count)...);
          writer.flush(to, count);
        }
      });
    });
  }
  (std::index_sequence_for<In...>{});
}

// ---- unary: forward(x), and backward(dy, x) = dy forward'(x) ----

template <class A>
A sigmoid(A x) {
  return A(1) / (A(1) + fast_exp(-x));
}

template <class A>
constexpr A kSqrtHalf = A(0.70710678118654752440);
template <class A>
constexpr A kSqrtTwoOverPi = A(0.79788456080286535588);

template <class A>
struct Identity {
  static A forward(A x) { return x; }
  static A backward(A dy, A) { return dy; }
};
template <class A>
struct Negate {
  static A forward(A x) { return -x; }
  static A backward(A dy, A) { return -dy; }
};
template <class A>
struct Exp {
  static A forward(A x) { return fast_exp(x); }
  static A backward(A dy, A x) { return dy * fast_exp(x); }
};
template <class A>
struct Log {
  static A forward(A x) { return std::log(x); }
  static A backward(A dy, A x) { return dy / x; }
};
template <class A>
struct Sqrt {
  static A forward(A x) { return std::sqrt(x); }
  static A backward(A dy, A x) { return dy * A(0.5) / std::sqrt(x); }
};
template <class A>
struct Square {
  static A forward(A x) { return x * x; }
  static A backward(A dy, A x) { return dy * A(2) * x; }
};
template <class A>
struct Abs {
  static A forward(A x) { return std::fabs(x); }
  static A backward(A dy, A x) { return x > 0 ? dy : x < 0 ? -dy : x == 0 ? A(0) : x; }
};
template <class A>
struct Relu {
  static A forward(A x) { return x <= 0 ? A(0) : x; }  // NaN stays
  static A backward(A dy, A x) { return x <= 0 ? A(0) : dy; }
};
template <class A>
struct Gelu {
  static A normal_distribution(A x) { return A(0.5) + A(0.5) * fast_erf(x * kSqrtHalf<A>); }
  static A forward(A x) { return x * normal_distribution(x); }
  static A backward(A dy, A x) {
    const A density = A(0.5) * kSqrtHalf<A> * A(1.12837916709551257390) * fast_exp(A(-0.5) * x * x);
    return dy * (normal_distribution(x) + x * density);
  }
};
template <class A>
struct GeluTanh {
  static A inner(A x) { return kSqrtTwoOverPi<A> * (x + A(0.044715) * x * x * x); }
  static A forward(A x) { return A(0.5) * x * (A(1) + fast_tanh(inner(x))); }
  static A backward(A dy, A x) {
    const A t = fast_tanh(inner(x));
    const A slope = kSqrtTwoOverPi<A> * (A(1) + A(3 * 0.044715) * x * x);
    return dy * A(0.5) * (A(1) + t + x * (A(1) - t * t) * slope);
  }
};
template <class A>
struct Silu {
  static A forward(A x) { return x * sigmoid(x); }
  static A backward(A dy, A x) {
    const A s = sigmoid(x);
    return dy * s * (A(1) + x * (A(1) - s));
  }
};
template <class A>
struct Sigmoid {
  static A forward(A x) { return sigmoid(x); }
  static A backward(A dy, A x) {
    const A s = sigmoid(x);
    return dy * s * (A(1) - s);
  }
};
template <class A>
struct Tanh {
  static A forward(A x) { return fast_tanh(x); }
  static A backward(A dy, A x) {
    const A t = fast_tanh(x);
    return dy * (A(1) - t * t);
  }
};
template <class A>
struct Softplus {
  static A forward(A x) { return (x > 0 ? x : A(0)) + std::log1p(std::exp(-std::fabs(x))); }
  static A backward(A dy, A x) { return dy * sigmoid(x); }
};

/// Calls f with the struct of `op`.
template <class A, class F>
auto with_unary(Unary op, F&& f) {
  switch (op) {
    case Unary::identity: return f(Identity<A>{});
    case Unary::negate: return f(Negate<A>{});
    case Unary::exp: return f(Exp<A>{});
    case Unary::log: return f(Log<A>{});
    case Unary::sqrt: return f(Sqrt<A>{});
    case Unary::square: return f(Square<A>{});
    case Unary::abs: return f(Abs<A>{});
    case Unary::relu: return f(Relu<A>{});
    case Unary::gelu: return f(Gelu<A>{});
    case Unary::gelu_tanh: return f(GeluTanh<A>{});
    case Unary::silu: return f(Silu<A>{});
    case Unary::sigmoid: return f(Sigmoid<A>{});
    case Unary::tanh: return f(Tanh<A>{});
    case Unary::softplus: return f(Softplus<A>{});
  }
  fail("unary: no such operation");
}

template <class A, class Op>
void unary_block(std::int64_t count, A* out, const A* x) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) out[i] = Op::forward(x[i]);
}

template <class A, class Op>
void unary_backward_block(std::int64_t count, A* dx, const A* dy, const A* x) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) dx[i] = Op::backward(dy[i], x[i]);
}

template <class A>
auto unary_backward_kernel(Unary op) {
  return with_unary<A>(op, [](auto f) { return &unary_backward_block<A, decltype(f)>; });
}

// ---- binary ----

template <class A>
struct Add {
  static A apply(A a, A b) { return static_cast<A>(a + b); }
};
template <class A>
struct Subtract {
  static A apply(A a, A b) { return static_cast<A>(a - b); }
};
template <class A>
struct Multiply {
  static A apply(A a, A b) { return static_cast<A>(a * b); }
};
template <class A>
struct Divide {
  static A apply(A a, A b) {
    if constexpr (std::is_integral_v<A>) check(b != 0, "divide: integer division by zero");
    return static_cast<A>(a / b);
  }
};
template <class A>
struct Maximum {
  static A apply(A a, A b) { return maximum(a, b); }
};
template <class A>
struct Minimum {
  static A apply(A a, A b) { return (a < b || a != a) ? a : b; }
};
template <class A>
struct Equal {
  static bool apply(A a, A b) { return a == b; }
};
template <class A>
struct Less {
  static bool apply(A a, A b) { return a < b; }
};
template <class A>
struct LessEqual {
  static bool apply(A a, A b) { return a <= b; }
};
template <class A>
struct LogicalOr {
  static bool apply(A a, A b) { return (a != A(0)) | (b != A(0)); }
};
template <class A>
struct LogicalAnd {
  static bool apply(A a, A b) { return (a != A(0)) & (b != A(0)); }
};

template <class A, class R, class Op>
void binary_block(std::int64_t count, R* out, const A* a, const A* b) {
  if constexpr (std::is_same_v<Op, Divide<A>> && std::is_integral_v<A>) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = Op::apply(a[i], b[i]);  // may throw
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) out[i] = Op::apply(a[i], b[i]);
  }
}

template <class A>
using ArithmeticBlock = void (*)(std::int64_t, A*, const A*, const A*);
template <class A>
using ComparisonBlock = void (*)(std::int64_t, bool*, const A*, const A*);

template <class A>
ArithmeticBlock<A> arithmetic_kernel(Binary op) {
  switch (op) {
    case Binary::add: return binary_block<A, A, Add<A>>;
    case Binary::subtract: return binary_block<A, A, Subtract<A>>;
    case Binary::multiply: return binary_block<A, A, Multiply<A>>;
    case Binary::divide: return binary_block<A, A, Divide<A>>;
    case Binary::maximum: return binary_block<A, A, Maximum<A>>;
    case Binary::minimum: return binary_block<A, A, Minimum<A>>;
    default: fail("binary: no such operation");
  }
}

template <class A>
ComparisonBlock<A> comparison_kernel(Binary op) {
  switch (op) {
    case Binary::equal: return binary_block<A, bool, Equal<A>>;
    case Binary::less: return binary_block<A, bool, Less<A>>;
    case Binary::less_equal: return binary_block<A, bool, LessEqual<A>>;
    case Binary::logical_or: return binary_block<A, bool, LogicalOr<A>>;
    case Binary::logical_and: return binary_block<A, bool, LogicalAnd<A>>;
    default: fail("binary: no such operation");
  }
}

/// Calls f(TypeTag<A>{}) with the type that elements of `dtype` are computed in.
template <class F>
void dispatch_compute(DType dtype, const char* op, F&& f) {
  dispatch_all(dtype == DType::bf16 ? DType::f32 : dtype, op, [&](auto tag) {
    if constexpr (!std::is_same_v<decltype(tag), TypeTag<bfloat16>>) f(tag);
  });
}

}  // namespace

template <class A>
UnaryFunction<A> unary_function(Unary op) {
  return with_unary<A>(op, [](auto f) -> UnaryFunction<A> { return unary_block<A, decltype(f)>; });
}
template UnaryFunction<float> unary_function(Unary);
template UnaryFunction<double> unary_function(Unary);

void unary(Unary op, const Tensor& x, const Tensor& out) {
  if (x.dtype() == DType::f64) for_blocks(unary_function<double>(op), As<double>{out}, As<double>{x});
  else for_blocks(unary_function<float>(op), As<float>{out}, As<float>{x});
}

void unary_backward(Unary op, const Tensor& dy, const Tensor& x, const Tensor& dx) {
  if (x.dtype() == DType::f64)
    for_blocks(unary_backward_kernel<double>(op), As<double>{dx}, As<double>{dy}, As<double>{x});
  else for_blocks(unary_backward_kernel<float>(op), As<float>{dx}, As<float>{dy}, As<float>{x});
}

void binary(Binary op, const Tensor& a, const Tensor& b, const Tensor& out) {
  dispatch_compute(a.dtype(), "binary", [&](auto tag) {
    using A = typename decltype(tag)::type;
    if (ops::is_comparison(op)) {
      for_blocks(comparison_kernel<A>(op), As<bool>{out}, As<A>{a}, As<A>{b});
    } else if constexpr (!std::is_same_v<A, bool>) {
      for_blocks(arithmetic_kernel<A>(op), As<A>{out}, As<A>{a}, As<A>{b});
    } else {
      fail(ops::name_of(op), ": bool operands");
    }
  });
}

void affine(const Tensor& x, double scale, double shift, const Tensor& out) {
  dispatch_compute(x.dtype(), "affine", [&](auto tag) {
    using A = std::conditional_t<std::is_same_v<typename decltype(tag)::type, float>, float, double>;
    const A factor = static_cast<A>(scale), term = static_cast<A>(shift);
    for_blocks(
        [=](std::int64_t count, A* to, const A* from) {
#pragma omp simd
          for (std::int64_t i = 0; i < count; ++i) to[i] = factor * from[i] + term;
        },
        As<A>{out}, As<A>{x});
  });
}

void where(const Tensor& condition, const Tensor& a, const Tensor& b, const Tensor& out) {
  dispatch_compute(a.dtype(), "where", [&](auto tag) {
    using A = typename decltype(tag)::type;
    for_blocks(
        [](std::int64_t count, A* to, const bool* choose_a, const A* from_a, const A* from_b) {
#pragma omp simd
          for (std::int64_t i = 0; i < count; ++i) to[i] = choose_a[i] ? from_a[i] : from_b[i];
        },
        As<A>{out}, As<bool>{condition}, As<A>{a}, As<A>{b});
  });
}

void accumulate(const Tensor& to, const Tensor& from, double scale) {
  const auto run = [&]<class A>(TypeTag<A>) {
    const A factor = static_cast<A>(scale);
    for_blocks(
        [=](std::int64_t count, A* sum, const A* old, const A* term) {
#pragma omp simd
          for (std::int64_t i = 0; i < count; ++i) sum[i] = old[i] + factor * term[i];
        },
        As<A>{to}, As<A>{to}, As<A>{from});
  };
  if (to.dtype() == DType::f32 || to.dtype() == DType::bf16) run(TypeTag<float>{});
  else run(TypeTag<double>{});
}

}  // namespace switchyard::cpu
