#include "core/ops/softmax.h"

#include <cmath>

#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using namespace testing;

/// log(sum(exp(row))) in double, over the row that `index` lies in.
double log_sum(const Tensor& x, Shape index) {
  double largest = -INFINITY, sum = 0;
  for (std::int64_t i = 0; i < x.size(-1); ++i) largest = std::max(largest, (index.back() = i, element(x, index)));
  for (std::int64_t i = 0; i < x.size(-1); ++i) sum += std::exp((index.back() = i, element(x, index)) - largest);
  return largest + std::log(sum);
}

/// sum over the row of f(index).
double row_sum(const Tensor& x, Shape index, const std::function<double(const Shape&)>& f) {
  double sum = 0;
  for (std::int64_t i = 0; i < x.size(-1); ++i) sum += (index.back() = i, f(index));
  return sum;
}

TEST(Softmax, MatchesTheFormulas) {
  for (const Shape& shape : {Shape{7}, Shape{2, 3, 33}, Shape{5, 1}, Shape{2, 1000}, Shape{70, 64}})
    for (const DType dtype : kFloatingDTypes) {
      const Tensor x = random_tensor(shape, 1, dtype, -6, 6), dy = random_tensor(shape, 2, dtype);
      const Tensor log_p = tensor_of(shape, [&](const Shape& i) { return element(x, i) - log_sum(x, i); });
      const Tensor p = tensor_of(shape, [&](const Shape& i) { return std::exp(element(log_p, i)); });
      Shape rows = shape;
      rows.pop_back();
      const Tensor lse = tensor_of(rows, [&](Shape i) { return i.push_back(0), log_sum(x, i); });
      // The backward passes take the rounded output, as the forward pass returns it.
      const Tensor y = p.to(dtype).to(default_device()), log_y = log_p.to(dtype).to(default_device());
      const Tensor dx = tensor_of(shape, [&](const Shape& i) {
        const double mean = row_sum(x, i, [&](const Shape& j) { return element(dy, j) * element(y, j); });
        return element(y, i) * (element(dy, i) - mean);
      });
      const Tensor dx_log = tensor_of(shape, [&](const Shape& i) {
        const double total = row_sum(x, i, [&](const Shape& j) { return element(dy, j); });
        return element(dy, i) - std::exp(element(log_y, i)) * total;
      });
      for (const Tensor& source : layouts(x)) {
        const Tensor actual = ops::softmax(source);
        EXPECT_EQ(actual.dtype(), dtype);
        EXPECT_CLOSE(actual, p, tolerance(dtype)) << shape;
        EXPECT_CLOSE(ops::log_softmax(source), log_p, tolerance(dtype)) << shape;
        EXPECT_CLOSE(ops::logsumexp(source), lse, tolerance(dtype)) << shape;
      }
      // Where one probability is near 1, dy - sum(dy y) cancels; rounding shows more than in the forward pass.
      for (const Tensor& upstream : layouts(dy)) {
        EXPECT_CLOSE(ops::softmax_backward(upstream, y), dx, 5 * tolerance(dtype)) << shape;
        EXPECT_CLOSE(ops::log_softmax_backward(upstream, log_y), dx_log, 5 * tolerance(dtype)) << shape;
      }
    }
}

TEST(Softmax, ShiftedRowsGiveTheSame) {
  for (const double shift : {1000.0, -1000.0}) {
    const Tensor x = Tensor::from<float>({1, 2, 3, 4.5f}, {1, 4});
    const Tensor moved =
        tensor_of({1, 4}, [&](const Shape& i) { return element(x, i) + shift; }).to(DType::f32).to(default_device());
    EXPECT_CLOSE(ops::softmax(moved), ops::softmax(x), 0);
    EXPECT_CLOSE(ops::log_softmax(moved), ops::log_softmax(x), 0);
    EXPECT_NEAR(ops::logsumexp(moved).item<double>(), ops::logsumexp(x).item<double>() + shift, 1e-4);
  }
}

TEST(Softmax, InfiniteElements) {
  for (const DType dtype : kFloatingDTypes) {
    const Tensor masked = Tensor::from<double>({-INFINITY, 0, 0, -INFINITY}, {4}).to(dtype);
    EXPECT_EQ(ops::softmax(masked).to_vector<double>(), (std::vector<double>{0, 0.5, 0.5, 0}));
    EXPECT_EQ(ops::log_softmax(masked).to_vector<double>()[0], -INFINITY);
    EXPECT_NEAR(ops::logsumexp(masked).item<double>(), std::log(2), 3e-3);

    const Tensor hidden = Tensor::full({2, 70}, -INFINITY, dtype);
    EXPECT_CLOSE(ops::softmax(hidden), Tensor::zeros({2, 70}), 0);
    EXPECT_CLOSE(ops::log_softmax(hidden), hidden, 0);
    EXPECT_CLOSE(ops::logsumexp(hidden), Tensor::full({2}, -INFINITY), 0);
    const Tensor dy = random_tensor({2, 70}, 1, dtype);
    EXPECT_CLOSE(ops::softmax_backward(dy, ops::softmax(hidden)), Tensor::zeros({2, 70}), 0);
    EXPECT_CLOSE(ops::log_softmax_backward(dy, ops::log_softmax(hidden)), dy, 0);

    EXPECT_EQ(ops::logsumexp(Tensor::from<double>({INFINITY, 0}, {2}).to(dtype)).item<double>(), INFINITY);
    const Tensor nan = Tensor::from<double>({0, NAN, 0}, {3}).to(dtype);
    EXPECT_CLOSE(ops::softmax(nan), Tensor::full({3}, NAN), 0);
    EXPECT_CLOSE(ops::log_softmax(nan), Tensor::full({3}, NAN), 0);
    EXPECT_TRUE(std::isnan(ops::logsumexp(nan).item<double>()));
  }
}

TEST(Softmax, EmptyAndErrors) {
  EXPECT_EQ(ops::softmax(Tensor::zeros({0, 3})).shape(), Shape({0, 3}));
  EXPECT_EQ(ops::logsumexp(Tensor::zeros({0, 3})).shape(), Shape({0}));
  EXPECT_EQ(ops::logsumexp(Tensor::zeros({3})).shape(), Shape({}));
  EXPECT_ERROR(ops::softmax(Tensor::zeros({3, 0})), "softmax: needs a last axis with elements, shape is [3, 0]");
  EXPECT_ERROR(ops::log_softmax(Tensor::scalar(1)), "log_softmax: needs a last axis");
  EXPECT_ERROR(ops::logsumexp(Tensor::arange(3)), "logsumexp: expected a floating dtype (f32, f64, bf16), got i64");
  EXPECT_ERROR(ops::softmax(Tensor()), "softmax: the tensor is undefined");
  EXPECT_ERROR(ops::softmax_backward(Tensor::zeros({3}), Tensor::zeros({4})),
               "softmax backward: shapes of dy and y differ: [3] and [4]");
  EXPECT_ERROR(ops::log_softmax_backward(Tensor::zeros({3}), Tensor::zeros({3}, DType::f64)),
               "log_softmax backward: dtypes of dy and y differ: f32 and f64");
}

}  // namespace
}  // namespace switchyard
