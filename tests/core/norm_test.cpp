#include "core/ops/norm.h"

#include <omp.h>

#include <cmath>

#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using namespace testing;

constexpr double kEpsilon = 1e-5;

/// One element of a parameter, or `missing` where there is none.
double parameter(const Tensor& tensor, std::int64_t i, double missing) {
  return tensor.defined() ? element(tensor, {i}) : missing;
}

/// The normalised x: (x - mean) / deviation, or x / rms.
Tensor normalized(const Tensor& x, bool centred, double epsilon = kEpsilon) {
  const std::int64_t d = x.size(-1);
  return tensor_of(x.shape(), [&](Shape index) {
    const double own = element(x, index);
    double mean = 0, square = 0;
    for (std::int64_t i = 0; centred && i < d; ++i)
      mean += (index.back() = i, element(x, index)) / static_cast<double>(d);
    for (std::int64_t i = 0; i < d; ++i) square += std::pow((index.back() = i, element(x, index)) - mean, 2);
    return (own - mean) / std::sqrt(square / static_cast<double>(d) + epsilon);
  });
}

/// weight n + bias.
Tensor scaled(const Tensor& n, const Tensor& weight, const Tensor& bias) {
  return tensor_of(n.shape(), [&](const Shape& i) {
    return element(n, i) * parameter(weight, i.back(), 1) + parameter(bias, i.back(), 0);
  });
}

/// d(sum(dy y))/dx by central differences of the formula above.
Tensor numeric_dx(const Tensor& dy, const Tensor& x, const Tensor& weight, bool centred) {
  const Tensor probe = x.to(DType::f64).to(Device::cpu()).clone();
  const std::int64_t d = x.size(-1), rows = x.numel() / d;
  const Tensor all_dy = dy.to(Device::cpu()).contiguous().view({rows, d});
  const Tensor own_weight = weight.defined() ? weight.to(Device::cpu()) : weight;
  std::vector<double> dx;
  double* const values = probe.data<double>();
  for (std::int64_t k = 0; k < rows * d; ++k) {
    const Tensor row = probe.view({rows, d}).slice(0, k / d, k / d + 1);
    const Tensor dy_row = all_dy.slice(0, k / d, k / d + 1);
    const auto objective = [&](double value) {
      const double old = std::exchange(values[k], value);
      const Tensor y = scaled(normalized(row, centred), own_weight, {});
      values[k] = old;
      double sum = 0;
      for_each_index(y.shape(), [&](const Shape& i) { sum += element(y, i) * element(dy_row, i); });
      return sum;
    };
    const double h = 1e-4, at = values[k];
    dx.push_back((8 * (objective(at + h) - objective(at - h)) - objective(at + 2 * h) + objective(at - 2 * h)) /
                 (12 * h));
  }
  return Tensor::from(dx, x.shape());
}

/// Sum over rows of dy n, or of dy.
Tensor parameter_gradient(const Tensor& dy, const Tensor& n) {
  std::vector<double> sum(static_cast<std::size_t>(dy.size(-1)));
  for_each_index(dy.shape(), [&](const Shape& i) {
    sum[static_cast<std::size_t>(i.back())] += element(dy, i) * (n.defined() ? element(n, i) : 1);
  });
  return Tensor::from(sum, {dy.size(-1)});
}

const Shape kShapes[] = {{5}, {2, 3, 7}, {3, 1}, {2, 100}, {150, 5}};

// Only float's dy and x differ from the double formula by rounding; the slope of a row of nearly equal elements is
// large.
double gradient_tolerance(DType dtype) { return dtype == DType::f64 ? 1e-8 : 4 * tolerance(dtype); }

TEST(LayerNorm, MatchesTheFormulas) {
  for (const Shape& shape : kShapes)
    for (const DType dtype : kFloatingDTypes)
      for (const int with : {0, 1, 2, 3}) {  // bit 0: weight, bit 1: bias
        const Shape width = {shape.back()};
        const Tensor x = random_tensor(shape, 1, dtype, -2, 3), dy = random_tensor(shape, 2, dtype);
        const Tensor weight = with & 1 ? random_tensor(width, 3, dtype, 0.5, 2) : Tensor();
        const Tensor bias = with & 2 ? random_tensor(width, 4, dtype) : Tensor();
        const Tensor n = normalized(x, true);
        for (const Tensor& source : layouts(x)) {
          const auto [y, mean, inverse, sum] = ops::layer_norm(source, weight, bias, kEpsilon);
          EXPECT_EQ(y.dtype(), dtype);
          EXPECT_FALSE(sum.defined());
          EXPECT_EQ(mean.dtype(), ops::compute_dtype(dtype));
          EXPECT_EQ(mean.shape(), Shape(shape.begin(), shape.end() - 1));
          EXPECT_CLOSE(y, scaled(n, weight, bias), tolerance(dtype)) << shape;
          const auto gradients = ops::layer_norm_backward(layouts(dy)[2], source, weight, with & 2, mean, inverse);
          EXPECT_CLOSE(gradients.dx, numeric_dx(dy, x, weight, true), gradient_tolerance(dtype)) << shape;
          EXPECT_EQ(gradients.dweight.defined(), weight.defined());
          EXPECT_EQ(gradients.dbias.defined(), bias.defined());
          if (weight.defined()) {
            EXPECT_CLOSE(gradients.dweight, parameter_gradient(dy, n), gradient_tolerance(dtype));
          }
          if (bias.defined()) {
            EXPECT_CLOSE(gradients.dbias, parameter_gradient(dy, {}), gradient_tolerance(dtype));
          }
        }
      }
}

TEST(RmsNorm, MatchesTheFormulas) {
  for (const Shape& shape : kShapes)
    for (const DType dtype : kFloatingDTypes)
      for (const bool with_weight : {false, true}) {
        const Tensor x = random_tensor(shape, 1, dtype, -2, 3), dy = random_tensor(shape, 2, dtype);
        const Tensor weight = with_weight ? random_tensor({shape.back()}, 3, dtype, 0.5, 2) : Tensor();
        const Tensor n = normalized(x, false);
        for (const Tensor& source : layouts(x)) {
          const auto [y, inverse, sum] = ops::rms_norm(source, weight, kEpsilon);
          EXPECT_EQ(inverse.dtype(), ops::compute_dtype(dtype));
          EXPECT_CLOSE(y, scaled(n, weight, {}), tolerance(dtype)) << shape;
          const auto gradients = ops::rms_norm_backward(layouts(dy)[2], source, weight, inverse);
          // A row of one element has the slope 0 but for epsilon: in float only the rounding of dy is left.
          if (shape.back() > 1 || dtype == DType::f64) {
            EXPECT_CLOSE(gradients.dx, numeric_dx(dy, x, weight, false), gradient_tolerance(dtype)) << shape;
          }
          EXPECT_EQ(gradients.dweight.defined(), with_weight);
          EXPECT_FALSE(gradients.dbias.defined());
          if (with_weight) {
            EXPECT_CLOSE(gradients.dweight, parameter_gradient(dy, n), gradient_tolerance(dtype));
          }
        }
      }
}

/// x + addend in double, rounded to the dtype.
Tensor rounded_sum(const Tensor& x, const Tensor& addend) {
  return tensor_of(x.shape(), [&](const Shape& i) { return element(x, i) + element(addend, i); }).to(x.dtype());
}

TEST(Norm, AnAddendComesBeforeTheNorm) {
  for (const Shape& shape : kShapes)
    for (const DType dtype : kFloatingDTypes) {
      const Tensor x = random_tensor(shape, 1, dtype, -2, 3), addend = random_tensor(shape, 2, dtype, -1, 1);
      const Tensor weight = random_tensor({shape.back()}, 3, dtype, 0.5, 2);
      const auto layer = ops::layer_norm(layouts(x)[2], weight, weight, kEpsilon, layouts(addend)[2]);
      EXPECT_CLOSE(layer.sum, rounded_sum(x, addend), dtype == DType::bf16 ? 0 : 1e-6) << shape;
      EXPECT_CLOSE(layer.y, scaled(normalized(layer.sum, true), weight, weight), tolerance(dtype)) << shape;
      const auto rms = ops::rms_norm(layouts(x)[2], weight, kEpsilon, layouts(addend)[2]);
      EXPECT_CLOSE(rms.sum, layer.sum, 0) << shape;
      EXPECT_CLOSE(rms.y, scaled(normalized(layer.sum, false), weight, {}), tolerance(dtype)) << shape;
    }
}

TEST(Norm, WhatReachesTheSumIsAddedToTheGradient) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Shape shape = {4, 9};
    const Tensor x = random_tensor(shape, 1, dtype), dy = random_tensor(shape, 2, dtype);
    const Tensor dsum = random_tensor(shape, 3, dtype), weight = random_tensor({9}, 4, dtype, 0.5, 2);
    const auto layer = ops::layer_norm(x, weight, weight, kEpsilon);
    const auto gradients =
        ops::layer_norm_backward(dy, x, weight, true, layer.mean, layer.inverse_deviation, layouts(dsum)[2]);
    const auto total = [&](bool centred) { return rounded_sum(numeric_dx(dy, x, weight, centred), dsum); };
    EXPECT_CLOSE(gradients.dx, total(true), gradient_tolerance(dtype));
    EXPECT_CLOSE(gradients.dweight, parameter_gradient(dy, normalized(x, true)), gradient_tolerance(dtype));
    const auto rms = ops::rms_norm(x, weight, kEpsilon);
    EXPECT_CLOSE(ops::rms_norm_backward(dy, x, weight, rms.inverse_rms, dsum).dx, total(false),
                 gradient_tolerance(dtype));
  }
}

TEST(Norm, FloatParametersServeBfloat16Activations) {
  const Tensor x = random_tensor({6, 40}, 1, DType::bf16), weight = random_tensor({40}, 2, DType::f32, 0.5, 2);
  const auto [y, mean, inverse, sum] = ops::layer_norm(x, weight, weight, kEpsilon);
  EXPECT_EQ(y.dtype(), DType::bf16);
  EXPECT_CLOSE(y, scaled(normalized(x, true), weight, weight), tolerance(DType::bf16));
  const auto gradients = ops::layer_norm_backward(x, x, weight, true, mean, inverse);
  EXPECT_EQ(gradients.dweight.dtype(), DType::f32);
  EXPECT_EQ(gradients.dbias.dtype(), DType::f32);
  EXPECT_CLOSE(gradients.dweight, parameter_gradient(x, normalized(x, true)), 1e-5);
}

TEST(Norm, LargeMeanLosesNoAccuracy) {
  // With the variance as mean(x^2) - mean(x)^2, nothing but noise would be left of it in float.
  const Tensor x = tensor_of({1, 64}, [](const Shape& i) { return 4096 + static_cast<double>(i[1] % 7); })
                       .to(DType::f32)
                       .to(default_device());
  EXPECT_CLOSE(ops::layer_norm(x, {}, {}, kEpsilon).y, normalized(x, true), 1e-4);
}

TEST(Norm, GradientsDoNotDependOnTheNumberOfThreads) {
  const Tensor x = random_tensor({3001, 33}, 1, DType::f32), dy = random_tensor({3001, 33}, 2, DType::f32);
  const Tensor weight = random_tensor({33}, 3, DType::f32);
  const int threads = omp_get_max_threads();
  std::vector<std::vector<float>> results;
  for (const int count : {1, 4}) {
    omp_set_num_threads(count);
    const auto [y, mean, inverse, sum] = ops::layer_norm(x, weight, weight, kEpsilon);
    const auto gradients = ops::layer_norm_backward(dy, x, weight, true, mean, inverse);
    for (const Tensor& part : {y, gradients.dx, gradients.dweight, gradients.dbias})
      results.push_back(part.to_vector<float>());
  }
  omp_set_num_threads(threads);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(results[i], results[i + 4]);
  EXPECT_CLOSE(Tensor::from(results[3], {33}), parameter_gradient(dy, {}), 1e-5);
}

TEST(Norm, EmptyConstantAndNaN) {
  const auto [y, mean, inverse, sum] = ops::layer_norm(Tensor::zeros({0, 3}), Tensor::ones({3}), {}, kEpsilon);
  EXPECT_EQ(y.shape(), Shape({0, 3}));
  const auto gradients = ops::layer_norm_backward(Tensor::zeros({0, 3}), y, Tensor::ones({3}), true, mean, inverse);
  EXPECT_CLOSE(gradients.dweight, Tensor::zeros({3}), 0);
  EXPECT_CLOSE(gradients.dbias, Tensor::zeros({3}), 0);
  EXPECT_CLOSE(ops::layer_norm(Tensor::full({2, 9}, 5), {}, {}, kEpsilon).y, Tensor::zeros({2, 9}), 0);
  EXPECT_CLOSE(ops::rms_norm(Tensor::zeros({2, 9}), {}, kEpsilon).y, Tensor::zeros({2, 9}), 0);
  const Tensor x = Tensor::ones({2, 9});
  x.slice(0, 1, 2).slice(1, 4, 5).fill(NAN);
  const Tensor z = ops::layer_norm(x, {}, {}, kEpsilon).y;
  EXPECT_CLOSE(z.select(0, 0), Tensor::zeros({9}), 0);
  EXPECT_CLOSE(z.select(0, 1), Tensor::full({9}, NAN), 0);
}

TEST(Norm, Errors) {
  const Tensor x = Tensor::zeros({2, 3}), one = Tensor::ones({2});
  EXPECT_EQ(ops::compute_dtype(DType::bf16), DType::f32);
  EXPECT_ERROR(ops::compute_dtype(DType::i32), "compute_dtype: expected a floating dtype");
  EXPECT_ERROR(ops::layer_norm(x, Tensor::ones({2}), {}, 1e-5), "layer_norm: weight has shape [2], expected [3]");
  EXPECT_ERROR(ops::layer_norm(x, {}, Tensor::ones({1, 3}), 1e-5), "layer_norm: bias has shape [1, 3], expected [3]");
  EXPECT_ERROR(ops::layer_norm(x, Tensor::ones({3}, DType::i32), {}, 1e-5), "layer_norm: weight: expected a floating");
  EXPECT_ERROR(ops::layer_norm(x, {}, {}, -1), "layer_norm: epsilon -1");
  EXPECT_ERROR(ops::rms_norm(x, {}, NAN), "rms_norm: epsilon nan");
  EXPECT_ERROR(ops::rms_norm(Tensor::zeros({2, 0}), {}, 1e-5), "rms_norm: needs a last axis with elements");
  EXPECT_ERROR(ops::rms_norm(Tensor::arange(3), {}, 1e-5), "rms_norm: expected a floating dtype");
  EXPECT_ERROR(ops::layer_norm(Tensor(), {}, {}, 1e-5), "layer_norm: the tensor is undefined");
  EXPECT_ERROR(ops::layer_norm_backward(Tensor::zeros({3}), x, {}, false, one, one),
               "layer_norm backward: shapes of dy and x differ: [3] and [2, 3]");
  EXPECT_ERROR(ops::layer_norm_backward(x, x, {}, false, Tensor::ones({3}), one),
               "layer_norm backward: mean is not what");
  EXPECT_ERROR(ops::layer_norm(x, {}, {}, 1e-5, Tensor::zeros({3})),
               "layer_norm: shapes of addend and x differ: [3] and [2, 3]");
  EXPECT_ERROR(ops::rms_norm_backward(x, x, {}, one, x.to(DType::f64)),
               "rms_norm backward: dtypes of dsum and x differ: f64 and f32");
  EXPECT_ERROR(ops::rms_norm_backward(x, x, {}, Tensor()), "rms_norm backward: inverse_rms is not what");
}

}  // namespace
}  // namespace switchyard
