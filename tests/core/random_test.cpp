#include "core/ops/random.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "core/philox.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using namespace testing;

/// A stream that starts at block 1000 + offset.
RandomStream stream_at(std::uint64_t seed, std::uint64_t offset = 0) {
  return {seed, Tensor::full({1}, 1000, DType::i64), offset};
}

/// The same for ops::normal, which draws initial weights and is the CPU's alone.
RandomStream cpu_stream_at(std::uint64_t seed, std::uint64_t offset = 0) {
  return {seed, Tensor::full({1}, 1000, DType::i64, Device::cpu()), offset};
}

TEST(Uniform, ElementsAreThoseOfThePhiloxSequence) {
  for (const std::int64_t numel : {1, 3, 4, 511, 512, 513, 40003})
    for (const DType dtype : kFloatingDTypes) {
      const Tensor x = ops::uniform({numel}, stream_at(7, 5), -2, 3, dtype);
      const Tensor expected = tensor_of({numel}, [](const Shape& i) {
        return -2 +
               5 * static_cast<double>(uniform_from_bits(philox_element(7, 1005, static_cast<std::uint64_t>(i[0]))));
      });
      EXPECT_EQ(x.dtype(), dtype);
      EXPECT_CLOSE(x, expected.to(DType::f32).to(dtype), dtype == DType::f64 ? 1e-7 : 0);
      EXPECT_CLOSE(x, expected, dtype == DType::f64 ? 0 : tolerance(dtype));
    }
}

TEST(Uniform, StreamsContinueEachOther) {
  Generator one(3, default_device()), two(3, default_device());
  const auto whole = ops::uniform({40}, one.next(40)).to_vector<float>();
  auto parts = ops::uniform({24}, two.next(24)).to_vector<float>();
  two.end_step();
  for (const float value : ops::uniform({16}, two.next(16)).to_vector<float>()) parts.push_back(value);
  EXPECT_EQ(whole, parts);
}

TEST(Uniform, StaysInItsRange) {
  const auto values = ops::uniform({100000}, stream_at(1)).to_vector<double>();
  double sum = 0, squares = 0;
  for (const double value : values) {
    ASSERT_GE(value, 0);
    ASSERT_LT(value, 1);
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / 1e5, 0.5, 0.005);
  EXPECT_NEAR(squares / 1e5, 1.0 / 3, 0.005);
}

TEST(Normal, HasTheMomentsOfANormalDistribution) {
  const std::int64_t count = 200001;
  const auto values = ops::normal({count}, cpu_stream_at(2), 3, 0.5, DType::f64).to_vector<double>();
  double moments[5] = {};
  for (const double value : values)
    for (int k = 1; k <= 4; ++k) moments[k] += std::pow((value - 3) / 0.5, k) / static_cast<double>(count);
  EXPECT_NEAR(moments[1], 0, 0.01);
  EXPECT_NEAR(moments[2], 1, 0.02);
  EXPECT_NEAR(moments[3], 0, 0.05);
  EXPECT_NEAR(moments[4], 3, 0.1);
  // Neighbours, which share a pair of uniform numbers, are uncorrelated.
  double product = 0;
  for (std::size_t i = 0; i + 1 < values.size(); i += 2) product += (values[i] - 3) * (values[i + 1] - 3) / 0.25;
  EXPECT_NEAR(product / (static_cast<double>(count) / 2), 0, 0.02);
}

TEST(Normal, ElementsDependOnTheirPositionOnly) {
  const auto all = ops::normal({1003}, cpu_stream_at(2)).to_vector<float>();
  const auto first = ops::normal({5}, cpu_stream_at(2)).to_vector<float>();
  EXPECT_TRUE(std::equal(first.begin(), first.end(), all.begin()));
  const auto later = ops::normal({5}, cpu_stream_at(2, 2)).to_vector<float>();
  EXPECT_TRUE(std::equal(later.begin(), later.end(), all.begin() + 8));
  EXPECT_EQ(ops::normal({0, 3}, cpu_stream_at(2)).shape(), Shape({0, 3}));
}

TEST(Bernoulli, IsAComparisonOfUniforms) {
  const auto uniform = ops::uniform({5, 1001}, stream_at(4)).to_vector<double>();
  for (const double probability : {0.0, 1e-9, 0.1, 0.5, 0.75, 1.0}) {
    const Tensor mask = ops::bernoulli({5, 1001}, stream_at(4), probability);
    EXPECT_EQ(mask.dtype(), DType::boolean);
    const auto values = mask.to_vector<std::int32_t>();
    for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], uniform[i] < probability ? 1 : 0);
  }
}

TEST(Dropout, DropsWhereTheUniformIsBelowTheProbability) {
  const auto uniform = ops::uniform({3, 2, 701}, stream_at(5)).to_vector<double>();
  for (const DType dtype : kFloatingDTypes)
    for (const double probability : {0.0, 0.1, 0.9}) {
      const Tensor x = random_tensor({3, 2, 701}, 1, dtype);
      std::size_t at = 0;
      const Tensor expected = tensor_of(x.shape(), [&](const Shape& i) {
        return uniform[at++] < probability ? 0 : element(x, i) / (1 - probability);
      });
      for (const Tensor& source : layouts(x))
        EXPECT_CLOSE(ops::dropout(source, stream_at(5), probability), expected, tolerance(dtype));
    }
  // What is dropped leaves no trace, not even NaN.
  const Tensor kept = ops::dropout(Tensor::full({1000}, NAN), stream_at(5), 0.5);
  const auto values = kept.to_vector<double>();
  EXPECT_NEAR(static_cast<double>(std::count(values.begin(), values.end(), 0.0)), 500, 80);
  EXPECT_EQ(ops::dropout(Tensor::zeros({0}), stream_at(5), 0.5).shape(), Shape({0}));
}

TEST(Random, DoesNotDependOnTheNumberOfThreads) {
  const int threads = omp_get_max_threads();
  std::vector<std::vector<float>> results;
  for (const int count : {1, 3}) {
    omp_set_num_threads(count);
    results.push_back(ops::uniform({100003}, stream_at(6)).to_vector<float>());
    results.push_back(ops::normal({100003}, cpu_stream_at(6)).to_vector<float>());
  }
  omp_set_num_threads(threads);
  EXPECT_EQ(results[0], results[2]);
  EXPECT_EQ(results[1], results[3]);
}

TEST(Random, Errors) {
  const RandomStream stream = stream_at(1), on_cpu = cpu_stream_at(1);
  EXPECT_ERROR(ops::uniform({2}, {}), "uniform: the random stream has no generator");
  EXPECT_ERROR(ops::uniform({2}, stream, 0, 1, DType::i32), "uniform: expected a floating dtype");
  EXPECT_ERROR(ops::uniform({2}, stream, 1, 0), "uniform: bad range 1 to 0");
  EXPECT_ERROR(ops::normal({2}, on_cpu, 0, -1), "normal: bad mean 0 or deviation -1");
  EXPECT_ERROR(ops::normal({2}, on_cpu, 0, 1, DType::i64), "normal: expected a floating dtype");
  EXPECT_ERROR(ops::bernoulli({2}, stream, 1.5), "bernoulli: probability 1.5 is outside 0..1");
  EXPECT_ERROR(ops::bernoulli({2}, stream, NAN), "bernoulli: probability nan");
  EXPECT_ERROR(ops::dropout(Tensor::zeros({2}), stream, 1), "dropout: probability 1 is outside [0, 1)");
  EXPECT_ERROR(ops::dropout(Tensor::zeros({2}), stream, -0.1), "dropout: probability -0.1");
  EXPECT_ERROR(ops::dropout(Tensor::arange(2), stream, 0.1), "dropout: expected a floating dtype");
  EXPECT_ERROR(ops::dropout(Tensor(), stream, 0.1), "dropout: the tensor is undefined");
}

}  // namespace
}  // namespace switchyard
