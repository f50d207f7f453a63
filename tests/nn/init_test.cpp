#include "nn/init.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/close.h"

namespace switchyard::nn {
namespace {

struct Moments {
  double mean = 0, deviation = 0, low = INFINITY, high = -INFINITY;
};

Moments moments(const Tensor& x) {
  const auto values = x.to_vector<double>();
  Moments m;
  for (const double v : values) {
    m.mean += v / static_cast<double>(values.size());
    m.low = std::min(m.low, v);
    m.high = std::max(m.high, v);
  }
  for (const double v : values) m.deviation += (v - m.mean) * (v - m.mean) / static_cast<double>(values.size());
  m.deviation = std::sqrt(m.deviation);
  return m;
}

TEST(Init, has_the_moments_it_promises) {
  struct Row {
    const char* name;
    Initializer init;
    double deviation, bound;  // of the absolute values; infinity for none
  };
  const Shape shape = {300, 200};
  const std::vector<Row> rows = {
      {"uniform", init::uniform(-0.3, 0.3), 0.3 / std::sqrt(3.0), 0.3},
      {"normal", init::normal(0.02), 0.02, INFINITY},
      {"fan_in_normal", init::fan_in_normal(0.5), 0.5 / std::sqrt(200.0), INFINITY},
      {"fan_in_uniform", init::fan_in_uniform(0.5), 0.5 / std::sqrt(200.0), 0.5 * std::sqrt(3.0 / 200)},
      {"xavier_uniform", init::xavier_uniform(), std::sqrt(2.0 / 500), std::sqrt(6.0 / 500)},
      {"xavier_normal", init::xavier_normal(), std::sqrt(2.0 / 500), INFINITY},
      {"kaiming_uniform", init::kaiming_uniform(), std::sqrt(2.0 / 200), std::sqrt(6.0 / 200)},
      {"kaiming_normal", init::kaiming_normal(), std::sqrt(2.0 / 200), INFINITY},
      // The deviation of a standard normal cut off at 2 is sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)) = 0.879626.
      {"truncated_normal", init::truncated_normal(0.1), 0.0879626, 0.2},
      {"truncated_normal_narrow", init::truncated_normal(1, 0.5), 0.2840, 0.5},
  };
  for (const Row& row : rows) {
    Generator generator(3);
    const Moments m = moments(row.init(shape, generator));
    EXPECT_NEAR(m.deviation, row.deviation, 0.015 * row.deviation) << row.name;
    EXPECT_NEAR(m.mean, 0, 0.02 * row.deviation) << row.name;
    if (std::isfinite(row.bound)) {
      EXPECT_LE(m.high, row.bound * (1 + 1e-6)) << row.name;
      EXPECT_GE(m.low, -row.bound * (1 + 1e-6)) << row.name;
      EXPECT_GT(m.high, 0.98 * row.bound) << row.name << ": the whole range must be used";
    } else {
      EXPECT_GT(m.high, 3.5 * row.deviation) << row.name << ": a normal distribution has tails";
    }
  }
  Generator generator(3);
  EXPECT_CLOSE(init::zeros()({3}, generator), Tensor::zeros({3}), 0.0);
  EXPECT_CLOSE(init::ones()({3}, generator), Tensor::ones({3}), 0.0);
}

TEST(Init, depends_on_the_seed_alone) {
  for (const Initializer& init : {init::normal(1), init::truncated_normal(1), init::xavier_uniform()}) {
    Generator a(7), b(7), c(8);
    const Tensor first = init({20, 30}, a);
    EXPECT_CLOSE(init({20, 30}, b), first, 0.0);
    EXPECT_GT(switchyard::testing::max_error(init({20, 30}, c), first), 0.1);
    EXPECT_GT(switchyard::testing::max_error(init({20, 30}, a), first), 0.1) << "the next weight gets other numbers";
  }
}

TEST(Init, refuses_senseless_arguments) {
  Generator generator(1);
  EXPECT_ERROR(init::normal(-1), "normal initializer: deviation -1 is negative");
  EXPECT_ERROR(init::truncated_normal(1, 0), "truncated_normal initializer: cut 0 is too narrow");
  EXPECT_ERROR(init::uniform(1, 0), "uniform initializer: low 1 is above high 0");
  EXPECT_ERROR(init::xavier_normal()({5}, generator), "initializer: inputs and outputs are needed, shape [5]");
}

}  // namespace
}  // namespace switchyard::nn
