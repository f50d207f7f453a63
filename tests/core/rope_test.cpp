#include <gtest/gtest.h>

#include <cmath>
#include <complex>

#include "core/ops/attention.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using testing::random_tensor;

constexpr double kBase = 10000;

ops::RopeTables tables(std::int64_t positions, std::int64_t rotated, DType dtype) {
  return ops::rope_tables(positions, rotated, kBase, dtype, default_device());
}

TEST(RopeTables, AreCosineAndSineOfPositionTimesFrequency) {
  const auto [cosine, sine] = tables(50, 6, DType::f64);
  ASSERT_EQ(cosine.shape(), (Shape{50, 6}));
  const auto c = cosine.to_vector<double>(), s = sine.to_vector<double>();
  for (int position = 0; position < 50; ++position) {
    for (int column = 0; column < 6; ++column) {
      const double angle = position / std::pow(kBase, 2.0 * (column % 3) / 6);
      EXPECT_NEAR(c[static_cast<std::size_t>(position * 6 + column)], std::cos(angle), 1e-14);
      EXPECT_NEAR(s[static_cast<std::size_t>(position * 6 + column)], std::sin(angle), 1e-14);
    }
  }
  EXPECT_EQ(tables(0, 4, DType::f32).cosine.shape(), (Shape{0, 4}));
  EXPECT_EQ(tables(3, 0, DType::f32).cosine.shape(), (Shape{3, 0}));
}

/// Channels i and i + r/2 as one complex number, turned.
Tensor naive_rope(const Tensor& x, std::int64_t rotated, std::int64_t first_position) {
  auto values = x.to_vector<double>();
  const std::int64_t width = x.size(3), heads = x.size(2), length = x.size(1), half = rotated / 2;
  for (std::int64_t row = 0; row < x.numel() / width; ++row) {
    const auto position = static_cast<double>(first_position + row / heads % length);
    for (std::int64_t i = 0; i < half; ++i) {
      const double frequency = std::pow(kBase, -2.0 * static_cast<double>(i) / static_cast<double>(rotated));
      double& real = values[static_cast<std::size_t>(row * width + i)];
      double& imaginary = values[static_cast<std::size_t>(row * width + i + half)];
      const auto turned = std::complex<double>(real, imaginary) * std::polar(1.0, position * frequency);
      real = turned.real();
      imaginary = turned.imag();
    }
  }
  return Tensor::from(values, x.shape());
}

TEST(Rope, TurnsPairsOfChannels) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const double tolerance = dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 2e-6 : 1e-2;
    const auto turn = tables(40, 6, dtype == DType::f64 ? DType::f64 : DType::f32);
    for (const std::int64_t first : {0, 7}) {
      const Tensor fused = random_tensor({2, 9, 3, 20}, 1, dtype);
      const Tensor x = fused.slice(3, 2, 12);  // a view of width 10
      const Tensor turned = ops::rope(x, turn, first);
      EXPECT_TRUE(turned.is_contiguous());
      EXPECT_CLOSE(turned, naive_rope(x, 6, first), tolerance);
      EXPECT_CLOSE(ops::rope(turned, turn, first, true), x.contiguous(), 2 * tolerance);

      const Tensor around = fused.clone();
      ops::rope_in_place(around.slice(3, 2, 12), turn, first);
      EXPECT_CLOSE(around.slice(3, 2, 12), turned, 0);
      EXPECT_CLOSE(around.slice(3, 0, 2), fused.slice(3, 0, 2), 0);
      EXPECT_CLOSE(around.slice(3, 12, 20), fused.slice(3, 12, 20), 0);
    }
  }
}

TEST(Rope, OfNoChannelsIsACopy) {
  const Tensor x = random_tensor({1, 4, 2, 5}, 2, DType::f32);
  EXPECT_EQ(ops::rope(x, tables(4, 0, DType::f32), 0).to_vector<float>(), x.to_vector<float>());
  EXPECT_EQ(ops::rope(Tensor::zeros({2, 0, 2, 4}), tables(4, 4, DType::f32), 0).shape(), (Shape{2, 0, 2, 4}));
}

TEST(Rope, ProductsDependOnDistanceOnly) {
  const auto turn = tables(64, 8, DType::f64);
  const Tensor q = random_tensor({1, 1, 1, 8}, 3, DType::f64), k = random_tensor({1, 1, 1, 8}, 4, DType::f64);
  const auto product = [&](std::int64_t at_q, std::int64_t at_k) {
    const auto a = ops::rope(q, turn, at_q).to_vector<double>(), b = ops::rope(k, turn, at_k).to_vector<double>();
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  for (const std::int64_t shift : {1, 20, 50}) EXPECT_NEAR(product(9, 3), product(9 + shift, 3 + shift), 1e-12);
  EXPECT_GT(std::abs(product(9, 3) - product(9, 4)), 1e-6);
}

TEST(Rope, Errors) {
  const Tensor x = Tensor::zeros({1, 4, 2, 6});
  EXPECT_ERROR(tables(4, 3, DType::f32), "rope_tables: rotated is 3, expected an even number");
  EXPECT_ERROR(tables(-1, 2, DType::f32), "rope_tables: positions is -1");
  EXPECT_ERROR(tables(4, 2, DType::bf16), "rope_tables: dtype is bf16, expected f32 or f64");
  EXPECT_ERROR(ops::rope_tables(4, 2, -1, DType::f32, default_device()), "rope_tables: base is -1");
  EXPECT_ERROR(ops::rope(x, tables(4, 8, DType::f32), 0),
               "rope: the tables rotate 8 channels, expected an even number up to the head width 6");
  EXPECT_ERROR(ops::rope(x, tables(4, 4, DType::f32), 2), "rope: positions 2 to 5 are outside tables of 4 positions");
  EXPECT_ERROR(ops::rope_in_place(x.transpose(2, 3), tables(4, 2, DType::f32), 0),
               "rope_in_place: x has stride 6 on its last axis, expected 1");
  EXPECT_ERROR(ops::rope(x, tables(4, 4, DType::f32), -1), "rope: positions -1 to 2");
  EXPECT_ERROR(ops::rope(x, tables(4, 4, DType::f64), 0), "rope: the tables are f64, expected f32 for x of f32");
  EXPECT_ERROR(ops::rope(Tensor::zeros({4, 2, 6}), tables(4, 4, DType::f32), 0),
               "rope: x has shape [4, 2, 6], expected four axes");
}

}  // namespace
}  // namespace switchyard
