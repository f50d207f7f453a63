#include "nn/optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/close.h"

namespace switchyard::nn {
namespace {

TEST(Schedule, constant_rises_and_stays) {
  const Schedule s = schedule::constant(4);
  EXPECT_EQ(s(0), 0);
  EXPECT_EQ(s(1), 0.25);
  EXPECT_EQ(s(4), 1);
  EXPECT_EQ(s(1000), 1);
  EXPECT_EQ(schedule::constant()(0), 1);
}

TEST(Schedule, linear_falls_to_its_final_fraction) {
  const Schedule s = schedule::linear(10, 30, 0.2);
  EXPECT_EQ(s(5), 0.5);
  EXPECT_EQ(s(10), 1);
  EXPECT_NEAR(s(20), 0.6, 1e-15);
  EXPECT_NEAR(s(30), 0.2, 1e-15);
  EXPECT_NEAR(s(99), 0.2, 1e-15);
}

TEST(Schedule, cosine_is_half_a_period_after_the_warm_up) {
  const Schedule s = schedule::cosine(10, 50);
  for (std::int64_t i = 0; i <= 50; ++i) {
    const double expected =
        i < 10 ? static_cast<double>(i) / 10 : 0.5 * (1 + std::cos(M_PI * static_cast<double>(i - 10) / 40));
    EXPECT_NEAR(s(i), expected, 1e-15) << i;
  }
  EXPECT_NEAR(s(60), 0, 1e-15);
  EXPECT_NEAR(schedule::cosine(0, 10, 0.1)(10), 0.1, 1e-15);
  EXPECT_NEAR(schedule::cosine(0, 10, 0.1)(5), 0.55, 1e-15);
  EXPECT_EQ(schedule::cosine(5, 5, 0.3)(5), 0.3);
}

TEST(Schedule, switchhead_rule_warms_up_then_anneals_over_the_whole_length) {
  const Schedule s = schedule::switchhead_warmup_then_cosine(4, 20);
  EXPECT_EQ(s(0), 0.25);
  EXPECT_EQ(s(3), 1);
  EXPECT_EQ(s(4), 1);
  EXPECT_NEAR(s(14), 0.5, 1e-15);
  EXPECT_NEAR(s(20), (1 + std::cos(M_PI * 16 / 20)) / 2, 1e-15);
  EXPECT_GT(s(20), 0);
  EXPECT_NEAR(schedule::cosine_annealing(20)(10), 0.5, 1e-15);
}

TEST(Schedule, refuses_senseless_spans) {
  EXPECT_ERROR(schedule::cosine(11, 10), "cosine schedule: 11 warm-up updates of 10");
  EXPECT_ERROR(schedule::linear(0, 10, 2), "linear schedule: final fraction 2, expected 0 to 1");
  EXPECT_ERROR(schedule::cosine_annealing(0), "cosine_annealing schedule: 0 updates, expected at least 1");
  EXPECT_ERROR(schedule::constant(-1), "constant schedule: -1 warm-up updates");
}

}  // namespace
}  // namespace switchyard::nn
