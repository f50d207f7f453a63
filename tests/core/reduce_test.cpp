#include "core/ops/reduce.h"

#include <omp.h>

#include <cmath>

#include "core/ops/elementwise.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using namespace testing;
using ops::Reduction;

/// Plain loop over all elements, with the reduced axes kept at size 1.
Tensor naive(Reduction op, const Tensor& x, const Shape& axes) {
  Shape kept = x.shape();
  if (axes.empty()) kept.assign(kept.size(), 1);
  for (const std::int64_t axis : axes) kept[axis < 0 ? axis + x.rank() : axis] = 1;
  std::vector<double> totals(static_cast<std::size_t>(kept.numel()), op == Reduction::max ? -INFINITY : 0);
  const Shape strides = contiguous_strides(kept);
  for_each_index(x.shape(), [&](const Shape& i) {
    std::int64_t at = 0;
    for (std::int64_t k = 0; k < x.rank(); ++k) at += kept[k] == 1 ? 0 : i[k] * strides[k];
    double& total = totals[static_cast<std::size_t>(at)];
    total = op == Reduction::max ? std::max(total, element(x, i)) : total + element(x, i);
  });
  if (op == Reduction::mean)
    for (double& total : totals) total *= static_cast<double>(kept.numel()) / static_cast<double>(x.numel());
  return Tensor::from(totals, kept);
}

const Shape kAxes[] = {{}, {0}, {1}, {2}, {-1}, {0, 1}, {0, 2}, {2, 1}, {0, 1, 2}, {1, 1}};

TEST(Reduce, MatchesPlainLoops) {
  for (const Shape& shape : {Shape{4, 5, 7}, Shape{1, 90, 3}, Shape{3, 2, 700}, Shape{600, 2, 1}})
    for (const DType dtype : kFloatingDTypes) {
      const Tensor x = random_tensor(shape, 1, dtype, -1, 2);
      for (const Reduction op : {Reduction::sum, Reduction::mean, Reduction::max})
        for (const Shape& axes : kAxes) {
          const Tensor expected = naive(op, x, axes);
          for (const Tensor& source : layouts(x)) {
            const Tensor kept = ops::reduce(op, source, axes, true);
            EXPECT_EQ(kept.dtype(), dtype);
            EXPECT_CLOSE(kept, expected, tolerance(dtype)) << shape << axes;
            const Tensor dropped = ops::reduce(op, source, axes);
            EXPECT_EQ(dropped.to_vector<double>(), kept.to_vector<double>());
          }
        }
    }
}

TEST(Reduce, ShapesOfResults) {
  const Tensor x = Tensor::ones({2, 3, 4});
  EXPECT_EQ(ops::sum(x).shape(), Shape({}));
  EXPECT_EQ(ops::sum(x, {}, true).shape(), Shape({1, 1, 1}));
  EXPECT_EQ(ops::sum(x, {-2}).shape(), Shape({2, 4}));
  EXPECT_EQ(ops::mean(x, {0, -1}).shape(), Shape({3}));
  EXPECT_EQ(ops::sum(Tensor::scalar(3)).item<double>(), 3);
}

TEST(Reduce, BroadcastInput) {
  const Tensor x = random_tensor({1, 5, 1}, 1).broadcast_to({6, 5, 4});
  for (const Shape& axes : kAxes) EXPECT_CLOSE(ops::sum(x, axes, true), naive(Reduction::sum, x, axes), 1e-12);
}

TEST(Reduce, IntegersAndBoolSumToI64) {
  for (const DType dtype : {DType::i32, DType::i64, DType::boolean}) {
    const Tensor x = random_tensor({70, 9}, 1, dtype, -1000, 1000);
    for (const Shape& axes : {Shape{}, Shape{0}, Shape{1}}) {
      EXPECT_CLOSE(ops::sum(x, axes, true), naive(Reduction::sum, x, axes), 0);
      EXPECT_EQ(ops::sum(x, axes).dtype(), DType::i64);
      const Tensor largest = ops::reduce(Reduction::max, x, axes, true);
      EXPECT_EQ(largest.dtype(), dtype);
      EXPECT_CLOSE(largest, naive(Reduction::max, x, axes), 0);
    }
  }
  const Tensor large = Tensor::full({3}, 2e9, DType::i32);
  EXPECT_EQ(ops::sum(large).item<std::int64_t>(), 6000000000);
}

TEST(Reduce, LongSumsAreAccurate) {
  // A running float sum of these would stop at 2^24.
  EXPECT_EQ(ops::sum(Tensor::ones({40000001})).item<double>(), 40000000.0);  // nearest float of 40000001
  const Tensor x = random_tensor({1000003}, 1, DType::f32, 0, 1);
  const double allowed = default_device().is_cuda() ? 2e-7 : 1e-7;  // its partial sums in float are rounded more often
  EXPECT_CLOSE(ops::sum(x), ops::sum(x.to(DType::f64)), allowed);
  const Tensor columns = random_tensor({20011, 7}, 2, DType::f32, 0, 1);
  EXPECT_CLOSE(ops::sum(columns, {0}), ops::sum(columns.to(DType::f64), {0}), allowed);
}

TEST(Reduce, DoesNotDependOnTheNumberOfThreads) {
  const Tensor x = random_tensor({300, 701}, 1, DType::f32);
  const Tensor tall = random_tensor({30000, 9}, 2, DType::f32);
  const int threads = omp_get_max_threads();
  std::vector<std::vector<float>> results;
  for (const int count : {1, 2, 5}) {
    omp_set_num_threads(count);
    std::vector<float> all;
    for (const Tensor& part : {ops::sum(x), ops::sum(x, {0}), ops::sum(x, {1}), ops::sum(tall, {0}),
                               ops::sum(tall.transpose(0, 1), {1}), ops::mean(tall)})
      for (const float value : part.to_vector<float>()) all.push_back(value);
    results.push_back(all);
  }
  omp_set_num_threads(threads);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(Reduce, EmptyTensors) {
  EXPECT_EQ(ops::sum(Tensor::zeros({0})).item<double>(), 0);
  EXPECT_CLOSE(ops::sum(Tensor::zeros({0, 3}), {0}), Tensor::zeros({3}), 0);
  EXPECT_EQ(ops::sum(Tensor::zeros({0, 3}), {1}).shape(), Shape({0}));
  EXPECT_TRUE(std::isnan(ops::mean(Tensor::zeros({0})).item<double>()));
  EXPECT_EQ(ops::reduce(Reduction::max, Tensor::zeros({0, 3}), {1}).shape(), Shape({0}));
  EXPECT_ERROR(ops::reduce(Reduction::max, Tensor::zeros({0, 3}), {0}), "max: no elements to choose from");
}

TEST(Reduce, NaNAndInfinity) {
  for (const DType dtype : kFloatingDTypes)
    for (const std::int64_t at : {0, 20, 69}) {
      const Tensor x = random_tensor({70}, 1, dtype);
      x.slice(0, at, at + 1).fill(NAN);
      EXPECT_TRUE(std::isnan(ops::reduce(Reduction::max, x).item<double>()));
      EXPECT_TRUE(std::isnan(ops::sum(x).item<double>()));
      EXPECT_TRUE(std::isnan(ops::reduce(Reduction::max, x.view({70, 1}), {0}).item<double>()));
      x.slice(0, at, at + 1).fill(-INFINITY);
      EXPECT_EQ(ops::sum(x).item<double>(), -INFINITY);
      EXPECT_LT(ops::reduce(Reduction::max, x).item<double>(), 2);
    }
  EXPECT_EQ(ops::reduce(Reduction::max, Tensor::full({3}, -INFINITY)).item<double>(), -INFINITY);
}

TEST(Reduce, Errors) {
  EXPECT_ERROR(ops::sum(Tensor::zeros({2, 3}), {2}), "sum: axis 2 is outside a tensor of rank 2");
  EXPECT_ERROR(ops::mean(Tensor::arange(3)), "mean: expected a floating dtype (f32, f64, bf16), got i64");
  EXPECT_ERROR(ops::sum(Tensor()), "sum: the tensor is undefined");
}

TEST(SumTo, UndoesBroadcasting) {
  for (const Shape& shape : {Shape{4, 5}, Shape{5}, Shape{1}, Shape{}, Shape{4, 1}, Shape{1, 5}, Shape{3, 4, 5},
                             Shape{3, 1, 1}, Shape{1, 4, 5}}) {
    const Tensor x = random_tensor({3, 4, 5}, 1);
    const Tensor y = ops::sum_to(x, shape);
    ASSERT_EQ(y.shape(), shape);
    // sum(sum_to(x) * w) = sum(x * broadcast(w)) for every w.
    const Tensor w = random_tensor(shape, 2);
    EXPECT_NEAR(ops::sum(ops::multiply(y, w)).item<double>(), ops::sum(ops::multiply(x, w)).item<double>(), 1e-12);
  }
  EXPECT_CLOSE(ops::sum_to(Tensor::full({1, 3}, 2), {3}), Tensor::full({3}, 2), 0);
  EXPECT_CLOSE(ops::sum_to(Tensor::zeros({0, 3}), {3}), Tensor::zeros({3}), 0);
  EXPECT_ERROR(ops::sum_to(Tensor::zeros({3, 4}), {3}), "sum_to");
  EXPECT_ERROR(ops::sum_to(Tensor::zeros({4}), {3, 4}), "sum_to: shape [3, 4] does not broadcast to [4]");
  EXPECT_ERROR(ops::sum_to(Tensor::zeros({1}), {4}), "sum_to: shape [4] does not broadcast to [1]");
}

TEST(ArgMax, FirstOfTheLargest) {
  for (const DType dtype : kAllDTypes)
    for (const std::int64_t n : {1, 3, 40, 900}) {
      // Few distinct values, so that there are ties.
      const Tensor x = random_tensor({6, n}, static_cast<std::uint64_t>(n), DType::i32, -4, 5).to(dtype);
      const Tensor expected = tensor_of({6}, [&](const Shape& row) {
        std::int64_t best = 0;
        for (std::int64_t i = 1; i < n; ++i)
          if (element(x, {row[0], i}) > element(x, {row[0], best})) best = i;
        return static_cast<double>(best);
      });
      for (const Tensor& source : layouts(x)) EXPECT_CLOSE(ops::argmax(source), expected, 0) << dtype;
    }
  EXPECT_EQ(ops::argmax(Tensor::from<float>({1, NAN, 3, NAN}, {4})).item<std::int64_t>(), 1);
  EXPECT_EQ(ops::argmax(Tensor::full({5}, -INFINITY)).item<std::int64_t>(), 0);
  EXPECT_EQ(ops::argmax(Tensor::zeros({0, 4})).shape(), Shape({0}));
  EXPECT_ERROR(ops::argmax(Tensor::zeros({4, 0})), "argmax: needs a last axis with elements, shape is [4, 0]");
  EXPECT_ERROR(ops::argmax(Tensor::scalar(1)), "argmax: needs a last axis");
}

TEST(CountNonfinite, CountsNaNAndInfinity) {
  for (const DType dtype : kFloatingDTypes) {
    const Tensor x = random_tensor({3, 50001}, 1, dtype, -1e30, 1e30);
    EXPECT_EQ(ops::count_nonfinite(x).item<std::int64_t>(), 0);
    x.select(0, 1).slice(0, 0, 50001, 1000).fill(NAN);
    x.select(0, 2).slice(0, 50000, 50001).fill(INFINITY);
    x.select(0, 0).slice(0, 0, 2).fill(-INFINITY);
    EXPECT_EQ(ops::count_nonfinite(x).item<std::int64_t>(), 51 + 1 + 2) << dtype;
    EXPECT_EQ(ops::count_nonfinite(x.transpose(0, 1)).item<std::int64_t>(), 54);
  }
  EXPECT_EQ(ops::count_nonfinite(Tensor::full({9}, 3e38)).item<std::int64_t>(), 0);
  EXPECT_EQ(ops::count_nonfinite(Tensor::zeros({0})).item<std::int64_t>(), 0);
  EXPECT_ERROR(ops::count_nonfinite(Tensor::arange(3)), "count_nonfinite: expected a floating dtype");
}

}  // namespace
}  // namespace switchyard
