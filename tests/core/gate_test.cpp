#include "core/ops/gate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace switchyard::ops {
namespace {

using testing::random_tensor;

std::vector<int> mask_of(const std::vector<double>& scores, const Gate& gate) {
  return expert_mask(Tensor::from(scores, {static_cast<std::int64_t>(scores.size())}), gate).to_vector<int>();
}

TEST(Gate, ModesOnAHandMadeToken) {
  const std::vector<double> scores = {1, 4, 2, 3};  // shares 0.1, 0.4, 0.2, 0.3
  EXPECT_EQ(mask_of(scores, {GateMode::all}), (std::vector<int>{1, 1, 1, 1}));
  EXPECT_EQ(mask_of(scores, {GateMode::topk, 2}), (std::vector<int>{0, 1, 0, 1}));
  EXPECT_EQ(mask_of(scores, {GateMode::dynk, 1, 0}), (std::vector<int>{0, 1, 0, 0}));
  EXPECT_EQ(mask_of(scores, {GateMode::dynk, 1, 0.5}), (std::vector<int>{0, 1, 0, 1}));
  EXPECT_EQ(mask_of(scores, {GateMode::dynk, 1, 0.75}), (std::vector<int>{0, 1, 1, 1}));
  EXPECT_EQ(mask_of(scores, {GateMode::dynk_max, 1, 0}), (std::vector<int>{0, 1, 0, 0}));
  EXPECT_EQ(mask_of(scores, {GateMode::dynk_max, 1, 0.5}), (std::vector<int>{0, 1, 1, 1}));
  EXPECT_EQ(mask_of(scores, {GateMode::dynk_max, 1, 1}), (std::vector<int>{1, 1, 1, 1}));
}

TEST(Gate, TopkTakesNaNLast) {
  EXPECT_EQ(mask_of({NAN, 1, 2, NAN}, {GateMode::topk, 1}), (std::vector<int>{0, 0, 1, 0}));
  EXPECT_EQ(mask_of({NAN, -1, 2, NAN}, {GateMode::topk, 2}), (std::vector<int>{0, 1, 1, 0}));
  EXPECT_EQ(mask_of({NAN, 1, 2, NAN}, {GateMode::topk, 3}), (std::vector<int>{1, 1, 1, 0}));
  EXPECT_EQ(mask_of({NAN, NAN, NAN}, {GateMode::topk, 2}), (std::vector<int>{1, 1, 0}));
}

TEST(Gate, TokensWithoutAnyScoreRunEverything) {
  EXPECT_EQ(mask_of({0, 0, 0}, {GateMode::dynk, 1, 0.3}), (std::vector<int>{1, 1, 1}));
  EXPECT_EQ(mask_of({0, 0, 0}, {GateMode::dynk_max, 1, 0.3}), (std::vector<int>{1, 1, 1}));
}

TEST(Gate, EveryTokenRunsAnExpertWhateverItsScores) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double tau : {0.0, 0.3, 1.0}) {
    const Gate near = {GateMode::dynk_max, 1, tau};
    EXPECT_EQ(mask_of({-3, -1, -2, -1}, near), (std::vector<int>{0, 1, 0, 1}));
    EXPECT_EQ(mask_of({-kInfinity, -kInfinity}, near), (std::vector<int>{1, 1}));
    EXPECT_EQ(mask_of({1, kInfinity}, near), (std::vector<int>{tau == 1, 1}));
    for (const GateMode mode : {GateMode::dynk, GateMode::dynk_max})
      for (const std::vector<double>& scores : {std::vector<double>{NAN, 1, 2}, {1, NAN, 2}, {NAN, NAN, NAN}})
        EXPECT_EQ(mask_of(scores, {mode, 1, tau}), (std::vector<int>{1, 1, 1})) << name_of(mode) << " " << tau;
  }
  const Tensor scores = random_tensor({40, 9}, 6, DType::f64, -1, 0.2);
  for (const GateMode mode : {GateMode::topk, GateMode::dynk, GateMode::dynk_max})
    for (const double tau : {0.0, 0.5, 1.0})
      for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
        const auto mask = expert_mask(scores.to(dtype), {mode, 1, tau}).to_vector<int>();
        for (auto row = mask.begin(); row != mask.end(); row += 9)
          EXPECT_NE(std::count(row, row + 9, 1), 0) << name_of(mode) << " " << tau;
      }
}

/// The rule of dynk, sorted out plainly for one row.
std::vector<int> naive_share(const std::vector<double>& scores, double tau) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  std::vector<int> mask(scores.size(), 0);
  double reached = 0;
  for (const std::size_t expert : order) {
    mask[expert] = 1;
    reached += scores[expert];
    if (reached >= tau * sum) break;
  }
  return mask;
}

TEST(Gate, DynkEqualsPlainSorting) {
  for (const std::int64_t experts : {1, 2, 7, 64, 300})
    for (const double tau : {0.0, 0.05, 0.33, 0.9}) {
      const Tensor scores = random_tensor({5, experts}, 3, DType::f64, 0, 1);
      const auto mask = expert_mask(scores, {GateMode::dynk, 1, tau}).to_vector<int>();
      for (std::int64_t row = 0; row < 5; ++row)
        EXPECT_EQ(std::vector<int>(mask.begin() + row * experts, mask.begin() + (row + 1) * experts),
                  naive_share(scores.select(0, row).to_vector<double>(), tau));
    }
}

TEST(Gate, ALargerTauRunsNoFewerExperts) {
  const Tensor scores = random_tensor({30, 40}, 4, DType::f32, 0, 1);
  for (const GateMode mode : {GateMode::dynk, GateMode::dynk_max}) {
    std::vector<int> before(30 * 40, 0);
    for (const double tau : {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}) {
      const auto mask = expert_mask(scores, {mode, 1, tau}).to_vector<int>();
      for (std::size_t i = 0; i < mask.size(); ++i) EXPECT_LE(before[i], mask[i]) << name_of(mode) << " " << tau;
      before = mask;
    }
  }
}

TEST(Gate, KeepsTheShapeOfStridedAndEmptyScores) {
  const Tensor scores = random_tensor({3, 6, 4}, 5, DType::f64, 0, 1).transpose(0, 1);
  for (const GateMode mode : {GateMode::all, GateMode::topk, GateMode::dynk, GateMode::dynk_max}) {
    const Gate gate = {mode, 2, 0.4};
    EXPECT_EQ(expert_mask(scores, gate).shape(), (Shape{6, 3, 4}));
    EXPECT_EQ(expert_mask(scores, gate).to_vector<int>(), expert_mask(scores.contiguous(), gate).to_vector<int>());
    EXPECT_EQ(expert_mask(Tensor::zeros({0, 4}), gate).shape(), (Shape{0, 4}));
    EXPECT_EQ(gate_mode_from_name(name_of(mode)), mode);
  }
}

TEST(Gate, Errors) {
  const Tensor scores = Tensor::zeros({2, 4});
  EXPECT_ERROR(expert_mask(scores, {GateMode::topk, 0}), "gate topk: k is 0, expected 1 to the 4 experts");
  EXPECT_ERROR(expert_mask(scores, {GateMode::topk, 5}), "gate topk: k is 5");
  EXPECT_ERROR(expert_mask(scores, {GateMode::dynk, 1, -0.1}), "gate dynk: tau is -0.1, expected 0 to 1");
  EXPECT_ERROR(expert_mask(scores, {GateMode::dynk_max, 1, 1.5}), "gate dynk_max: tau is 1.5");
  EXPECT_ERROR(expert_mask(scores, {GateMode::dynk_max, 1, NAN}), "tau is nan");
  EXPECT_ERROR(expert_mask(scores.to(DType::i32), {}), "expert_mask: scores must be floating");
  EXPECT_ERROR(gate_mode_from_name("best"), "gate mode \"best\" is unknown");
}

}  // namespace
}  // namespace switchyard::ops
