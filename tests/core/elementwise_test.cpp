#include "core/ops/elementwise.h"

#include <cmath>
#include <limits>

#include "tests/support/close.h"
#include "tests/support/device.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using namespace testing;
using ops::Binary;
using ops::Unary;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double normal_distribution(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

struct UnaryCase {
  Unary op;
  double low, high;
  double (*forward)(double);
};

const UnaryCase kUnaryCases[] = {
    {Unary::identity, -8, 8, [](double x) { return x; }},
    {Unary::negate, -8, 8, [](double x) { return -x; }},
    {Unary::exp, -8, 8, [](double x) { return std::exp(x); }},
    {Unary::log, 0.01, 8, [](double x) { return std::log(x); }},
    {Unary::sqrt, 0.01, 8, [](double x) { return std::sqrt(x); }},
    {Unary::square, -8, 8, [](double x) { return x * x; }},
    {Unary::abs, -8, 8, [](double x) { return std::fabs(x); }},
    {Unary::relu, -8, 8, [](double x) { return x > 0 ? x : 0; }},
    {Unary::gelu, -8, 8, [](double x) { return x * normal_distribution(x); }},
    {Unary::gelu_tanh, -8, 8,
     [](double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }},
    {Unary::silu, -8, 8, [](double x) { return x / (1 + std::exp(-x)); }},
    {Unary::sigmoid, -8, 8, [](double x) { return 1 / (1 + std::exp(-x)); }},
    {Unary::tanh, -8, 8, [](double x) { return std::tanh(x); }},
    {Unary::softplus, -8, 8, [](double x) { return std::log(1 + std::exp(x)); }},
};

/// f'(x) by central differences of the formula, extrapolated once: good to about 1e-10 of f.
double slope(double (*f)(double), double x) {
  const auto central = [&](double h) { return (f(x + h) - f(x - h)) / (2 * h); };
  const double h = 1e-3 * std::min(1.0, std::fabs(x));
  return (4 * central(h / 2) - central(h)) / 3;
}

/// A tolerance for derivatives, which the differences above limit in double.
double slope_tolerance(DType dtype) { return std::max(tolerance(dtype), 1e-8); }

TEST(Unary, MatchesTheFormulaInEveryLayoutAndDType) {
  for (const UnaryCase& c : kUnaryCases)
    for (const DType dtype : kFloatingDTypes) {
      SCOPED_TRACE(name_of(c.op));
      const Tensor x = random_tensor({5, 3, 7}, 1, dtype, c.low, c.high);
      const Tensor dy = random_tensor({5, 3, 7}, 2, dtype);
      const Tensor y = tensor_of(x.shape(), [&](const Shape& i) { return c.forward(element(x, i)); });
      const Tensor dx =
          tensor_of(x.shape(), [&](const Shape& i) { return element(dy, i) * slope(c.forward, element(x, i)); });
      for (const Tensor& source : layouts(x)) {
        const Tensor actual = ops::unary(c.op, source);
        EXPECT_EQ(actual.dtype(), dtype);
        EXPECT_TRUE(actual.is_contiguous());
        EXPECT_CLOSE(actual, y, tolerance(dtype));
        EXPECT_CLOSE(ops::unary_backward(c.op, dy, source), dx, slope_tolerance(dtype));
        EXPECT_CLOSE(ops::unary_backward(c.op, layouts(dy)[1], source), dx, slope_tolerance(dtype));
      }
    }
}

TEST(Unary, LargeAndEmpty) {
  for (const UnaryCase& c : kUnaryCases) {
    SCOPED_TRACE(name_of(c.op));
    const Tensor x = random_tensor({3, 40001}, 3, DType::f32, c.low, c.high);
    const Tensor y = tensor_of(x.shape(), [&](const Shape& i) { return c.forward(element(x, i)); });
    EXPECT_CLOSE(ops::unary(c.op, x), y, tolerance(DType::f32));
    EXPECT_EQ(ops::unary(c.op, Tensor::zeros({3, 0})).shape(), Shape({3, 0}));
    EXPECT_EQ(ops::unary_backward(c.op, Tensor::zeros({0}), Tensor::zeros({0})).shape(), Shape({0}));
  }
}

// The float versions of exp, tanh and erf are our own, so they are held to the C library's over their whole range.
TEST(Unary, FloatFunctionsAreAccurateOverTheirRange) {
  const std::int64_t count = 200001;
  const auto worst_ulp = [&](Unary op, double low, double high, double (*f)(double)) {
    const Tensor x = ops::affine(Tensor::arange(count, DType::f64), (high - low) / (count - 1), low).to(DType::f32);
    const auto in = x.to_vector<double>(), out = ops::unary(op, x).to_vector<double>();
    double worst = 0;
    for (std::size_t i = 0; i < in.size(); ++i) {
      const double exact = f(in[i]);
      const double unit = std::max(std::ldexp(1.0, std::ilogb(exact) - 23), 0x1p-149);
      worst = std::max(worst, std::fabs(out[i] - exact) / unit);
    }
    return worst;
  };
  EXPECT_LE(worst_ulp(Unary::exp, -103.9, 88.7, [](double x) { return std::exp(x); }), 2);
  EXPECT_LE(worst_ulp(Unary::tanh, -12.01, 12, [](double x) { return std::tanh(x); }), 3);
  EXPECT_LE(worst_ulp(Unary::tanh, -1e-3, 1.01e-3, [](double x) { return std::tanh(x); }), 3);
  EXPECT_LE(worst_ulp(Unary::sigmoid, -80, 80, [](double x) { return 1 / (1 + std::exp(-x)); }), 4);
  // Gelu loses the relative accuracy of its small negative values to cancellation, not the absolute one.
  const Tensor x = ops::affine(Tensor::arange(count, DType::f64), 20.0 / (count - 1), -10).to(DType::f32);
  const auto in = x.to_vector<double>(), out = ops::unary(Unary::gelu, x).to_vector<double>();
  for (std::size_t i = 0; i < in.size(); ++i)
    ASSERT_NEAR(out[i], in[i] * normal_distribution(in[i]), 2.5e-7 * std::max(1.0, std::fabs(in[i]))) << in[i];
}

TEST(Unary, SpecialValues) {
  const auto at = [](Unary op, double x, DType dtype) {
    // Long enough to meet the SIMD loop and its tail.
    const auto values = ops::unary(op, Tensor::full({37}, x, dtype)).to_vector<double>();
    for (const double value : values) EXPECT_TRUE(value == values[0] || std::isnan(values[0]));
    return values.back();
  };
  const auto slope_at = [](Unary op, double x, DType dtype) {
    return ops::unary_backward(op, Tensor::full({37}, 1, dtype), Tensor::full({37}, x, dtype))
        .to_vector<double>()
        .back();
  };
  for (const DType dtype : kFloatingDTypes) {
    SCOPED_TRACE(name_of(dtype));
    for (const UnaryCase& c : kUnaryCases) EXPECT_TRUE(std::isnan(at(c.op, kNaN, dtype))) << name_of(c.op);
    EXPECT_EQ(at(Unary::exp, kInfinity, dtype), kInfinity);
    EXPECT_EQ(at(Unary::exp, -kInfinity, dtype), 0);
    EXPECT_EQ(at(Unary::exp, 1000, dtype), kInfinity);
    EXPECT_EQ(at(Unary::exp, -1000, dtype), 0);
    EXPECT_EQ(at(Unary::log, 0, dtype), -kInfinity);
    EXPECT_TRUE(std::isnan(at(Unary::log, -1, dtype)));
    EXPECT_TRUE(std::isnan(at(Unary::sqrt, -1, dtype)));
    EXPECT_EQ(at(Unary::tanh, kInfinity, dtype), 1);
    EXPECT_EQ(at(Unary::tanh, -kInfinity, dtype), -1);
    EXPECT_EQ(at(Unary::sigmoid, kInfinity, dtype), 1);
    EXPECT_EQ(at(Unary::sigmoid, -kInfinity, dtype), 0);
    EXPECT_EQ(at(Unary::softplus, 1000, dtype), 1000);
    EXPECT_EQ(at(Unary::softplus, -1000, dtype), 0);
    for (const Unary op : {Unary::gelu, Unary::gelu_tanh, Unary::silu}) {
      EXPECT_EQ(at(op, 1000, dtype), 1000) << name_of(op);
      EXPECT_EQ(at(op, -1000, dtype), 0) << name_of(op);
      EXPECT_EQ(at(op, 0, dtype), 0) << name_of(op);
      EXPECT_EQ(slope_at(op, 1000, dtype), 1) << name_of(op);
      EXPECT_EQ(slope_at(op, -1000, dtype), 0) << name_of(op);
    }
    EXPECT_EQ(slope_at(Unary::relu, 0, dtype), 0);
    EXPECT_EQ(slope_at(Unary::abs, 0, dtype), 0);
    EXPECT_EQ(slope_at(Unary::abs, -2, dtype), -1);
  }
}

TEST(Unary, ReluBackwardTakesTheOutput) {
  const Tensor x = random_tensor({50}, 4), dy = random_tensor({50}, 5);
  EXPECT_CLOSE(ops::unary_backward(Unary::relu, dy, ops::unary(Unary::relu, x)),
               ops::unary_backward(Unary::relu, dy, x), 0);
}

TEST(Unary, NamesAndErrors) {
  EXPECT_EQ(ops::activation_from_name("gelu_tanh"), Unary::gelu_tanh);
  EXPECT_EQ(ops::activation_from_name("softplus"), Unary::softplus);
  EXPECT_ERROR(ops::activation_from_name("exp"), "activation: \"exp\" is not one of identity");
  EXPECT_ERROR(ops::unary(Unary::exp, Tensor::zeros({2}, DType::i32)),
               "exp: expected a floating dtype (f32, f64, bf16), got i32");
  EXPECT_ERROR(ops::unary(Unary::silu, Tensor()), "silu: the tensor is undefined");
  EXPECT_ERROR(ops::unary_backward(Unary::relu, Tensor::zeros({2}), Tensor::zeros({3})),
               "relu backward: shapes differ: [2] and [3]");
  EXPECT_ERROR(ops::unary_backward(Unary::relu, Tensor::zeros({2}), Tensor::zeros({2}, DType::f64)),
               "relu backward: dtypes differ: f32 and f64");
}

// ---- binary ----

struct BinaryCase {
  Binary op;
  double (*apply)(double, double);
};

const BinaryCase kArithmetic[] = {
    {Binary::add, [](double a, double b) { return a + b; }},
    {Binary::subtract, [](double a, double b) { return a - b; }},
    {Binary::multiply, [](double a, double b) { return a * b; }},
    {Binary::divide, [](double a, double b) { return a / b; }},
    {Binary::maximum, [](double a, double b) { return std::max(a, b); }},
    {Binary::minimum, [](double a, double b) { return std::min(a, b); }},
};
const BinaryCase kComparisons[] = {
    {Binary::equal, [](double a, double b) { return a == b ? 1.0 : 0.0; }},
    {Binary::less, [](double a, double b) { return a < b ? 1.0 : 0.0; }},
    {Binary::less_equal, [](double a, double b) { return a <= b ? 1.0 : 0.0; }},
};
const BinaryCase kLogical[] = {
    {Binary::logical_or, [](double a, double b) { return a != 0 || b != 0 ? 1.0 : 0.0; }},
    {Binary::logical_and, [](double a, double b) { return a != 0 && b != 0 ? 1.0 : 0.0; }},
};

const std::pair<Shape, Shape> kShapePairs[] = {
    {{4, 3, 5}, {4, 3, 5}},
    {{4, 3, 5}, {5}},
    {{4, 3, 1}, {1, 5}},
    {{}, {3, 2}},
    {{4, 1, 5}, {3, 1}},
    {{1}, {700}},
    {{2, 600}, {600}},
    {{2, 600}, {2, 1}},
    {{0, 3}, {1, 3}},
    {{3, 0}, {}},
    {{}, {}},
};

void expect_binary(const BinaryCase& c, const Tensor& a, const Tensor& b, DType result) {
  const Shape shape = broadcast_shapes("test", a.shape(), b.shape());
  const bool whole = a.dtype() == DType::i32 || a.dtype() == DType::i64;
  const Tensor expected = tensor_of(shape, [&](const Shape& i) {
    const double value = c.apply(broadcast_element(a, i), broadcast_element(b, i));
    return whole ? std::trunc(value) : value;
  });
  for (const Tensor& left : layouts(a))
    for (const Tensor& right : layouts(b)) {
      const Tensor actual = ops::binary(c.op, left, right);
      EXPECT_EQ(actual.dtype(), result);
      EXPECT_CLOSE(actual, expected, tolerance(result)) << name_of(c.op) << ' ' << a.shape() << ' ' << b.shape();
    }
}

TEST(Binary, ArithmeticAndComparisonsOfNumbers) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64})
    for (const auto& [shape_a, shape_b] : kShapePairs) {
      // From 1 on, so that no integer divisor is 0.
      const Tensor a = random_tensor(shape_a, 1, dtype, -9, 9), b = random_tensor(shape_b, 2, dtype, 1, 9);
      for (const BinaryCase& c : kArithmetic) expect_binary(c, a, b, dtype);
      const Tensor few_a = a.to(DType::i32).to(dtype), few_b = b.to(DType::i32).to(dtype);  // with equal elements
      for (const BinaryCase& c : kComparisons) expect_binary(c, few_a, few_b, DType::boolean);
    }
}

TEST(Binary, Bool) {
  for (const auto& [shape_a, shape_b] : kShapePairs) {
    const Tensor a = random_tensor(shape_a, 1, DType::boolean), b = random_tensor(shape_b, 2, DType::boolean);
    for (const BinaryCase& c : kLogical) expect_binary(c, a, b, DType::boolean);
    for (const BinaryCase& c : kComparisons) expect_binary(c, a, b, DType::boolean);
  }
}

TEST(Binary, LargeEnoughForAllThreads) {
  const Tensor a = random_tensor({90, 1001}, 1, DType::f32), b = random_tensor({90, 1}, 2, DType::f32);
  const Tensor sum = ops::add(a, b);
  double worst = 0;
  for_each_index(a.shape(), [&](const Shape& i) {
    worst = std::max(worst, std::fabs(element(sum, i) - (element(a, i) + element(b, {i[0], 0}))));
  });
  EXPECT_LT(worst, 2e-7);
}

TEST(Binary, NaNAndInfinity) {
  const Tensor a = Tensor::from<float>({NAN, 1, INFINITY, 0}, {4}), b = Tensor::from<float>({1, NAN, INFINITY, 0}, {4});
  EXPECT_CLOSE(ops::binary(Binary::maximum, a, b), Tensor::from<double>({kNaN, kNaN, kInfinity, 0}, {4}), 0);
  EXPECT_CLOSE(ops::binary(Binary::minimum, a, b), Tensor::from<double>({kNaN, kNaN, kInfinity, 0}, {4}), 0);
  EXPECT_CLOSE(ops::subtract(a, b), Tensor::from<double>({kNaN, kNaN, kNaN, 0}, {4}), 0);
  EXPECT_CLOSE(ops::divide(a, b), Tensor::from<double>({kNaN, kNaN, kNaN, kNaN}, {4}), 0);
  EXPECT_EQ(ops::binary(Binary::less_equal, a, b).to_vector<std::int32_t>(), (std::vector<std::int32_t>{0, 0, 1, 1}));
}

TEST(Binary, Errors) {
  const Tensor x = Tensor::zeros({2, 3}), flag = Tensor::zeros({2, 3}, DType::boolean);
  EXPECT_ERROR(ops::add(x, Tensor::zeros({2})), "add: shapes do not broadcast: [2, 3] and [2]");
  EXPECT_ERROR(ops::add(x, Tensor::zeros({3}, DType::f64)), "add: dtypes differ: f32 and f64");
  EXPECT_ERROR(ops::add(x, Tensor()), "add: an undefined tensor");
  EXPECT_ERROR(ops::add(flag, flag), "add: expected numbers, got bool");
  EXPECT_ERROR(ops::binary(Binary::logical_and, x, x), "logical_and: expected bool, got f32");
}

TEST(Binary, IntegerDivisionByZero) {
  SKIP_ON_GPU("the host does not read divisors there");
  EXPECT_ERROR(ops::divide(Tensor::arange(3), Tensor::arange(3)), "divide: integer division by zero");
}

// ---- affine, where, accumulate ----

TEST(Affine, MatchesTheFormula) {
  for (const DType dtype : kFloatingDTypes) {
    const Tensor x = random_tensor({7, 90}, 1, dtype);
    const Tensor y = tensor_of(x.shape(), [&](const Shape& i) { return -1.5 * element(x, i) + 0.25; });
    for (const Tensor& source : layouts(x)) EXPECT_CLOSE(ops::affine(source, -1.5, 0.25), y, tolerance(dtype));
  }
  EXPECT_EQ(ops::affine(Tensor::arange(4), 3, -1).to_vector<std::int64_t>(), (std::vector<std::int64_t>{-1, 2, 5, 8}));
  EXPECT_EQ(ops::affine(Tensor::zeros({0}), 2).shape(), Shape({0}));
  EXPECT_ERROR(ops::affine(Tensor::zeros({2}, DType::boolean), 2), "affine: expected numbers, got bool");
}

TEST(Where, ChoosesWithBroadcasting) {
  for (const DType dtype : kAllDTypes) {
    const Tensor condition = random_tensor({4, 1, 6}, 1, DType::boolean);
    const Tensor a = random_tensor({5, 6}, 2, dtype, -9, 9), b = random_tensor({4, 5, 1}, 3, dtype, -9, 9);
    const Tensor expected = tensor_of(
        {4, 5, 6}, [&](const Shape& i) { return broadcast_element(broadcast_element(condition, i) != 0 ? a : b, i); });
    for (const Tensor& c : layouts(condition))
      for (const Tensor& left : layouts(a)) {
        const Tensor actual = ops::where(c, left, layouts(b)[2]);
        EXPECT_EQ(actual.dtype(), dtype);
        EXPECT_CLOSE(actual, expected, 0);
      }
  }
  // What is not chosen does not show, not even as NaN.
  const Tensor nan = Tensor::full({3}, kNaN), one = Tensor::ones({3});
  EXPECT_CLOSE(ops::where(Tensor::zeros({1}, DType::boolean), nan, one), one, 0);
  EXPECT_ERROR(ops::where(one, one, one), "where: expected a bool condition, got f32");
  EXPECT_ERROR(ops::where(Tensor::zeros({3}, DType::boolean), one, Tensor::ones({3}, DType::f64)),
               "where: dtypes differ: f32 and f64");
  EXPECT_ERROR(ops::where(Tensor::zeros({2}, DType::boolean), one, one), "where: shapes do not broadcast");
}

TEST(Accumulate, AddsInPlace) {
  for (const DType to_dtype : kFloatingDTypes)
    for (const DType from_dtype : kAllDTypes) {
      const Tensor to = random_tensor({3, 4, 5}, 1, to_dtype), from = random_tensor({4, 1}, 2, from_dtype, -9, 9);
      const Tensor expected =
          tensor_of(to.shape(), [&](const Shape& i) { return element(to, i) - 0.5 * broadcast_element(from, i); });
      for (const Tensor& target : layouts(to)) {
        const Tensor sum = target.is_contiguous() ? target.clone() : target;
        ops::accumulate(sum, from, -0.5);
        EXPECT_CLOSE(sum, expected, tolerance(to_dtype)) << to_dtype << ' ' << from_dtype;
      }
    }
  const Tensor counts = Tensor::arange(3);
  ops::accumulate(counts, Tensor::arange(3, DType::i32));
  EXPECT_EQ(counts.to_vector<std::int64_t>(), (std::vector<std::int64_t>{0, 2, 4}));
  ops::accumulate(Tensor::zeros({0, 2}), Tensor::ones({2}));
}

TEST(Accumulate, Errors) {
  EXPECT_ERROR(ops::accumulate(Tensor::zeros({3}), Tensor::zeros({2, 3})), "[2, 3]");
  EXPECT_ERROR(ops::accumulate(Tensor::zeros({3}, DType::boolean), Tensor::zeros({3})),
               "accumulate: cannot add to a bool tensor");
  EXPECT_ERROR(ops::accumulate(Tensor::zeros({1}).broadcast_to({3}), Tensor::zeros({3})),
               "accumulate: the target repeats elements");
  EXPECT_ERROR(ops::accumulate(Tensor(), Tensor::zeros({3})), "accumulate: an undefined tensor");
}

}  // namespace
}  // namespace switchyard
