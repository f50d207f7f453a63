#include "core/ops/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/cpu/gemm.h"
#include "core/ops/norm.h"
#include "core/parallel.h"
#include "tests/support/close.h"
#include "tests/support/device.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using testing::random_tensor;

double tolerance_of(DType dtype) { return dtype == DType::f64 ? 1e-13 : dtype == DType::f32 ? 1e-5 : 1e-2; }

/// The product in double by four plain loops.
Tensor naive_matmul(const Tensor& a, const Tensor& b) {
  const std::int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  Shape batch = broadcast_shapes("naive_matmul", Shape(a.shape().begin(), a.shape().end() - 2),
                                 Shape(b.shape().begin(), b.shape().end() - 2));
  const auto values = [&](const Tensor& x) {
    Shape shape = batch;
    shape.insert(shape.end(), x.shape().end() - 2, x.shape().end());
    return x.broadcast_to(shape).to_vector<double>();
  };
  const std::vector<double> left = values(a), right = values(b);
  std::vector<double> out(static_cast<std::size_t>(batch.numel() * m * n));
  for (std::int64_t i = 0; i < batch.numel(); ++i)
    for (std::int64_t r = 0; r < m; ++r)
      for (std::int64_t c = 0; c < n; ++c)
        for (std::int64_t j = 0; j < k; ++j)
          out[(i * m + r) * n + c] += left[(i * m + r) * k + j] * right[(i * k + j) * n + c];
  batch.push_back(m);
  batch.push_back(n);
  return Tensor::from(out, batch);
}

void expect_product(const Tensor& a, const Tensor& b) {
  const Tensor product = ops::matmul(a, b);
  EXPECT_EQ(product.dtype(), a.dtype());
  EXPECT_TRUE(product.is_contiguous());
  SCOPED_TRACE(::testing::Message() << a.dtype() << " " << a.shape() << " strides " << a.strides() << " x " << b.shape()
                                    << " strides " << b.strides());
  EXPECT_CLOSE(product, naive_matmul(a, b), tolerance_of(a.dtype()));
}

class MatmulTest : public ::testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(DTypes, MatmulTest, ::testing::Values(DType::f32, DType::f64, DType::bf16),
                         [](const auto& instance) { return std::string(name_of(instance.param)); });

TEST_P(MatmulTest, MatchesPlainLoops) {
  const std::pair<Shape, Shape> cases[] = {
      {{1, 1}, {1, 1}},
      {{3, 5}, {5, 7}},
      {{1, 9}, {9, 1}},
      {{17, 1}, {1, 13}},
      {{64, 33}, {33, 65}},
      {{2, 3, 4}, {2, 4, 5}},
      {{2, 3, 4}, {4, 5}},
      {{3, 4}, {2, 4, 5}},
      {{2, 1, 3, 4}, {5, 4, 2}},
      {{2, 3, 4, 5}, {5, 6}},
      {{1, 3, 4, 5}, {2, 1, 5, 6}},
      {{7, 1, 4}, {4, 3}},
      {{3, 2, 1, 2, 3}, {2, 4, 3, 2}},
      {{0, 3}, {3, 4}},
      {{3, 4}, {4, 0}},
      {{0, 3, 4}, {4, 5}},
      {{2, 3, 0}, {2, 0, 4}},
  };
  std::uint64_t seed = 1;
  for (const auto& [a, b] : cases) {
    ++seed;
    expect_product(random_tensor(a, seed, GetParam()), random_tensor(b, seed + 100, GetParam()));
  }
}

TEST_P(MatmulTest, ReadsViewsInPlace) {
  const DType dtype = GetParam();
  const Tensor a = random_tensor({4, 6, 10}, 1, dtype), b = random_tensor({4, 10, 6}, 2, dtype);
  expect_product(a, a.transpose(1, 2));
  expect_product(b.transpose(1, 2), a.transpose(1, 2));
  expect_product(a.permute({1, 0, 2}), b.select(0, 1));  // rows of the batch do not lie back to back
  expect_product(a.permute({2, 0, 1}), b.select(0, 1).transpose(0, 1));
  expect_product(a.slice(2, 1, 9, 3), b.slice(1, 1, 9, 3));  // no axis of stride 1
  expect_product(a.slice(1, 0, 6, 2), b.slice(2, 0, 1));     // one column out of six
  expect_product(a.slice(2, 3, 4), b.slice(1, 5, 6));        // k = 1
  expect_product(a.slice(1, 5, 6), b.slice(2, 0, 6, 5));
  expect_product(a.select(0, 0).slice(1, 0, 1), a.select(1, 0).slice(0, 2, 3));
  expect_product(random_tensor({6, 1}, 3, dtype).broadcast_to({6, 10}), b);  // stride 0 along a row
  expect_product(random_tensor({1, 10}, 4, dtype).broadcast_to({6, 10}), b);
  // Attention's layout: [B, T, H, d] seen as [B, H, T, d].
  const Tensor q = random_tensor({2, 5, 3, 4}, 5, dtype).permute({0, 2, 1, 3});
  expect_product(q, random_tensor({2, 7, 3, 4}, 6, dtype).permute({0, 2, 3, 1}));
}

TEST_P(MatmulTest, ManySmallAndFewLargeProducts) {
  expect_product(random_tensor({300, 3, 4}, 1, GetParam()), random_tensor({300, 4, 2}, 2, GetParam()));
  expect_product(random_tensor({3, 150, 90}, 3, GetParam()), random_tensor({3, 90, 170}, 4, GetParam()));
}

TEST_P(MatmulTest, BlockEdges) {  // bf16 works on blocks of 512
  const Tensor a = random_tensor({515, 513}, 1, GetParam()), b = random_tensor({513, 514}, 2, GetParam());
  expect_product(a, b);
  expect_product(b.transpose(0, 1), a.transpose(0, 1));
}

TEST(Matmul, AnyStridesAndBroadcasting) {
  // Random permutations, steps and repeated axes of four-axis operands against the plain loops.
  std::mt19937 random(7);
  const auto draw = [&](std::int64_t count) { return static_cast<std::int64_t>(random()) % count; };
  const auto operand = [&](const Shape& shape) {
    Shape big = shape, order{0, 1, 2, 3}, inverse(4, 0);
    for (std::int64_t& size : big) size = 3 * size + 1;
    for (std::int64_t i = 3; i > 0; --i) std::swap(order[i], order[draw(i + 1)]);
    Shape stored(4, 0);
    for (std::int64_t i = 0; i < 4; ++i) {
      stored[i] = big[order[i]];
      inverse[order[i]] = i;
    }
    Tensor x = random_tensor(stored, static_cast<std::uint64_t>(draw(1000)), DType::f64).permute(inverse);
    for (std::int64_t i = 0; i < 4; ++i) {
      const std::int64_t step = 1 + draw(3), begin = draw(2);
      x = x.slice(i, begin, begin + (shape[i] - 1) * step + 1, step);
    }
    return x;
  };
  for (int round = 0; round < 150; ++round) {
    const std::int64_t b0 = 1 + draw(3), b1 = 1 + draw(3), m = 1 + draw(4), k = 1 + draw(4), n = 1 + draw(4);
    expect_product(operand({draw(2) ? b0 : 1, draw(2) ? b1 : 1, m, k}),
                   operand({draw(2) ? b0 : 1, draw(2) ? b1 : 1, k, n}));
  }
}

TEST_P(MatmulTest, IntoScalesAndAdds) {
  const Tensor a = random_tensor({5, 7}, 1, GetParam()), b = random_tensor({7, 3}, 2, GetParam());
  const std::vector<double> product = naive_matmul(a, b).to_vector<double>();
  const Tensor start = random_tensor({5, 3}, 3, GetParam());
  for (const auto& [alpha, beta] : {std::pair{1.0, 0.0}, {0.5, 1.0}, {2.0, -0.25}, {0.0, 2.0}}) {
    const Tensor out = start.clone();
    ops::matmul_into(a, b, out, alpha, beta);
    std::vector<double> expected = start.to_vector<double>();
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = alpha * product[i] + beta * expected[i];
    EXPECT_CLOSE(out, Tensor::from(expected, {5, 3}), tolerance_of(GetParam()));
  }
}

TEST_P(MatmulTest, IntoDoesNotReadOldValuesWithBetaZero) {
  const Tensor a = random_tensor({5, 7}, 1, GetParam()), b = random_tensor({7, 3}, 2, GetParam());
  const Tensor out = Tensor::full({5, 3}, std::numeric_limits<double>::quiet_NaN(), GetParam());
  ops::matmul_into(a, b, out);
  EXPECT_CLOSE(out, naive_matmul(a, b), tolerance_of(GetParam()));
  out.fill(std::numeric_limits<double>::quiet_NaN());
  ops::matmul_into(a.slice(1, 0, 0), b.slice(0, 0, 0), out);  // an empty sum
  EXPECT_EQ(out.to_vector<double>(), std::vector<double>(15, 0.0));
  out.fill(4);
  ops::matmul_into(a.slice(1, 0, 0), b.slice(0, 0, 0), out, 1, 0.5);
  EXPECT_EQ(out.to_vector<double>(), std::vector<double>(15, 2.0));
}

TEST_P(MatmulTest, OneLongRowOfEveryLayout) {
  constexpr std::int64_t kDepth = 17, kColumns = 60000;  // more than is worth a copy
  const Tensor wide = random_tensor({9, 40}, 1, GetParam()), tall = random_tensor({40, 9}, 4, GetParam());
  const Tensor start = random_tensor({1, kColumns}, 3, GetParam());
  const Tensor plain = random_tensor({kDepth + 3, kColumns + 9}, 2, GetParam()).slice(0, 1, kDepth + 1);
  const Tensor turned = random_tensor({kColumns + 9, kDepth + 3}, 5, GetParam()).slice(1, 1, kDepth + 1);
  for (const auto& [row, b] :
       {std::pair{wide.slice(0, 2, 3).slice(1, 3, 20), plain.slice(1, 9, kColumns + 9)},
        {tall.slice(0, 7, 24).slice(1, 5, 6).transpose(0, 1), turned.slice(0, 9, kColumns + 9).transpose(0, 1)}}) {
    const std::vector<double> product = naive_matmul(row, b).to_vector<double>();
    for (const auto& [alpha, beta] : {std::pair{1.0, 0.0}, {2.0, -0.25}}) {
      const Tensor out = beta == 0 ? Tensor::full({1, kColumns}, NAN, GetParam()) : start.clone();
      ops::matmul_into(row, b, out, alpha, beta);
      std::vector<double> expected = start.to_vector<double>();
      for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = alpha * product[i] + beta * expected[i];
      EXPECT_CLOSE(out, Tensor::from(expected, {1, kColumns}), tolerance_of(GetParam()));
    }
  }
}

TEST_P(MatmulTest, IntoWritesOnlyItsOwnColumns) {
  const Tensor a = random_tensor({5, 7}, 1, GetParam()), b = random_tensor({7, 3}, 2, GetParam());
  const Tensor wide = Tensor::full({5, 9}, 7, GetParam());
  ops::matmul_into(a, b, wide.slice(1, 2, 5));
  EXPECT_CLOSE(wide.slice(1, 2, 5), naive_matmul(a, b), tolerance_of(GetParam()));
  EXPECT_EQ(wide.slice(1, 0, 2).to_vector<double>(), std::vector<double>(10, 7.0));
  EXPECT_EQ(wide.slice(1, 5, 9).to_vector<double>(), std::vector<double>(20, 7.0));
  ops::matmul_into(a, b.slice(1, 1, 2), wide.slice(1, 8, 9));  // one column, rows nine apart
  EXPECT_CLOSE(wide.slice(1, 8, 9), naive_matmul(a, b.slice(1, 1, 2)), tolerance_of(GetParam()));
}

TEST(Matmul, Bf16OperandsMayGiveF32) {
  const Tensor a = random_tensor({70, 600}, 1, DType::bf16), b = random_tensor({600, 40}, 2, DType::bf16);
  const Tensor out = Tensor::ones({70, 40});
  ops::matmul_into(a, b, out, 1, 0);
  EXPECT_CLOSE(out, naive_matmul(a, b), 1e-5);
  ops::matmul_into(a, b, out, 2, 1);
  const Tensor expected = naive_matmul(a, b);
  std::vector<double> three = expected.to_vector<double>();
  for (double& value : three) value *= 3;
  EXPECT_CLOSE(out, Tensor::from(three, {70, 40}), 1e-5);
}

TEST(Matmul, Bf16RoundsOnce) {
  // 1 + 2^-9 added 64 times: rounding the running sum to bf16 would lose every small term.
  const Tensor a = Tensor::full({1, 1024}, 0.0625, DType::bf16), b = Tensor::full({1024, 1}, 0.0625, DType::bf16);
  EXPECT_EQ(ops::matmul(a, b).item<float>(), 4.0f);
}

TEST_P(MatmulTest, LinearMatchesPlainLoops) {
  const DType dtype = GetParam();
  const Tensor w = random_tensor({6, 5}, 1, dtype), bias = random_tensor({6}, 2, dtype);
  for (const Shape& shape : {Shape{5}, Shape{1, 5}, Shape{7, 5}, Shape{2, 3, 5}, Shape{0, 5}, Shape{3, 0, 5}}) {
    const Tensor x = random_tensor(shape, 3, dtype);
    Shape expected_shape = shape;
    expected_shape.back() = 6;
    Tensor flat = naive_matmul(x.reshape({x.numel() / 5, 5}), w.transpose(0, 1));
    EXPECT_CLOSE(ops::linear(x, w), flat.view(expected_shape), tolerance_of(dtype));
    std::vector<double> values = flat.to_vector<double>(), shift = bias.to_vector<double>();
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += shift[i % 6];
    EXPECT_CLOSE(ops::linear(x, w, bias), Tensor::from(values, expected_shape), tolerance_of(dtype));
    const Tensor unrounded = ops::linear(x, w, bias, ops::compute_dtype(dtype));
    EXPECT_EQ(unrounded.dtype(), ops::compute_dtype(dtype));
    EXPECT_CLOSE(unrounded, Tensor::from(values, expected_shape), 1e-5);
  }
}

TEST_P(MatmulTest, LinearReadsViews) {
  const DType dtype = GetParam();
  const Tensor x = random_tensor({5, 14}, 1, dtype), w = random_tensor({14, 6}, 2, dtype);
  EXPECT_CLOSE(ops::linear(x, w.transpose(0, 1)), naive_matmul(x, w), tolerance_of(dtype));
  const Tensor columns = x.slice(1, 3, 9), square = random_tensor({6, 6}, 3, dtype);
  EXPECT_CLOSE(ops::linear(columns, square), naive_matmul(columns, square.transpose(0, 1)), tolerance_of(dtype));
  EXPECT_CLOSE(ops::linear(x.transpose(0, 1).slice(1, 0, 4, 3), square.slice(1, 0, 6, 5)),
               naive_matmul(x.transpose(0, 1).slice(1, 0, 4, 3), square.slice(1, 0, 6, 5).transpose(0, 1)),
               tolerance_of(dtype));
}

TEST_P(MatmulTest, LinearAppliesAnActivation) {
  const DType dtype = GetParam();
  const Tensor x = random_tensor({7, 5}, 1, dtype), w = random_tensor({6, 5}, 2, dtype),
               bias = random_tensor({6}, 3, dtype);
  for (const ops::Activation activation : {ops::Activation::relu, ops::Activation::gelu}) {
    EXPECT_CLOSE(ops::linear(x, w, bias, {}, activation), ops::unary(activation, ops::linear(x, w, bias)),
                 tolerance_of(dtype));
    EXPECT_CLOSE(ops::linear(x, w, {}, {}, activation), ops::unary(activation, ops::linear(x, w)), tolerance_of(dtype));
  }
}

TEST(Matmul, LinearOfNoFeatures) {
  const Tensor bias = Tensor::from<float>({1, 2}, {2});
  EXPECT_EQ(ops::linear(Tensor::empty({3, 0}), Tensor::empty({2, 0}), bias).to_vector<float>(),
            (std::vector<float>{1, 2, 1, 2, 1, 2}));
}

TEST(Matmul, GemmInsideAParallelLoop) {
  SKIP_ON_GPU("gemm and parallel_for are the CPU's");
  constexpr std::int64_t kCount = 24, kSize = 40;
  const Tensor a = random_tensor({kCount, kSize, kSize}, 1, DType::f64),
               b = random_tensor({kSize, kSize}, 2, DType::f64);
  const Tensor out = Tensor::empty(a.shape(), DType::f64);
  parallel_for(0, kCount, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      cpu::gemm<double, double>(kSize, kSize, kSize, 1, {a.data<double>() + i * kSize * kSize, kSize},
                                cpu::MatrixView<double>{b.data<double>(), kSize}.transposed(), 0,
                                out.data<double>() + i * kSize * kSize, kSize);
  });
  EXPECT_CLOSE(out, naive_matmul(a, b.transpose(0, 1)), 1e-13);
}

TEST(Matmul, RepeatsExactly) {
  const Tensor a = random_tensor({130, 257}, 1, DType::f32), b = random_tensor({257, 65}, 2, DType::f32);
  const std::vector<float> once = ops::matmul(a, b).to_vector<float>();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(ops::matmul(a, b).to_vector<float>(), once);
}

TEST(Matmul, Errors) {
  const Tensor a = Tensor::zeros({4, 8}), b = Tensor::zeros({7, 3});
  EXPECT_ERROR(ops::matmul(a, b), "matmul: inner sizes differ: [4, 8] x [7, 3]");
  EXPECT_ERROR(ops::matmul(a, Tensor::zeros({8})), "matmul: needs at least two axes: [4, 8] x [8]");
  EXPECT_ERROR(ops::matmul(Tensor::zeros({2, 4, 8}), Tensor::zeros({3, 8, 1})), "matmul: ");
  EXPECT_ERROR(ops::matmul(a, Tensor::zeros({8, 2}, DType::f64)), "matmul: dtypes differ: f32 x f64");
  EXPECT_ERROR(ops::matmul(Tensor::zeros({2, 2}, DType::i32), Tensor::zeros({2, 2}, DType::i32)),
               "matmul: expected a floating dtype (f32, f64, bf16), got i32");
  EXPECT_ERROR(ops::matmul(a, Tensor()), "matmul: an undefined tensor");
  EXPECT_ERROR(ops::matmul_into(a, Tensor::zeros({8, 3}), Tensor::zeros({4, 2})),
               "matmul_into: shapes do not fit: [4, 8] x [8, 3] -> [4, 2]");
  EXPECT_ERROR(ops::matmul_into(a, Tensor::zeros({8, 3}), Tensor::zeros({3, 4}).transpose(0, 1)),
               "matmul_into: out needs dense rows, its strides are [1, 4]");
  EXPECT_ERROR(ops::matmul_into(a, Tensor::zeros({8, 3}), Tensor::zeros({4, 3}, DType::bf16)),
               "matmul_into: out is bf16, expected f32 or f32");
  EXPECT_ERROR(ops::linear(a, b), "linear: expected x [..., k] and w [m, k], got [4, 8] and [7, 3]");
  EXPECT_ERROR(ops::linear(a, Tensor::zeros({7, 8}), Tensor::zeros({8})), "linear: expected bias [7], got [8]");
  EXPECT_ERROR(ops::linear(a, Tensor::zeros({7, 8}), {}, DType::bf16), "linear: out is bf16, expected f32 or f32");
}

}  // namespace
}  // namespace switchyard
