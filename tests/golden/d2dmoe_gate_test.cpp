#include "tests/golden/d2dmoe.h"

namespace switchyard::golden {
namespace {

constexpr double kLeastGap = 1e-6;  // nearer to tau, rounding decides

/// One row per token: how many experts were chosen, and the sum of their scores.
struct Choice {
  std::vector<double> count, score_sum;
};

Choice choice_of(const Tensor& scores, const Tensor& mask) {
  const Tensor chosen = mask.to(DType::f64);
  return {ops::sum(chosen, {-1}).to_vector<double>(),
          ops::sum(ops::multiply(chosen, scores.to(DType::f64)), {-1}).to_vector<double>()};
}

/// Where equal scores make the choice open, only its size and its sum are given.
void compare_choices(const File& file, const std::string& name, const ops::Gate& gate, const Choice& actual,
                     double allowed) {
  const auto score_sum = file.tensor(name + ".score_sum").to_vector<double>();
  std::vector<double> count(score_sum.size(), static_cast<double>(gate.k)), gap(score_sum.size(), INFINITY);
  if (gate.mode == ops::GateMode::dynk) {
    count = file.tensor(name + ".count").to_vector<double>();
    gap = file.tensor(name + ".gap").to_vector<double>();
  }
  for (std::size_t token = 0; token < count.size(); ++token) {
    if (gap[token] <= kLeastGap) continue;
    EXPECT_EQ(actual.count[token], count[token]) << name << ", token " << token;
    EXPECT_NEAR(actual.score_sum[token], score_sum[token], allowed) << name << ", token " << token;
  }
}

std::string check_file(const File& file) {
  int masks = 0;
  for (const std::string& name : names_with(file, ".mask"))
    for (const Precision& precision : {kF64, kF32}) {
      const std::string set = name.substr(0, name.find('.'));
      const ops::Gate gate = gate_of(name, set + ".");
      const Tensor scores = file.tensor(set + ".scores", precision.dtype), expected = file.tensor(name + ".mask");
      const Tensor mask = ops::expert_mask(scores, gate);
      const bool distinct = set == "random" || set == "skewed";
      if (distinct || gate.mode == ops::GateMode::dynk_max) {
        EXPECT_EQ(mask.to_vector<int>(), expected.to_vector<int>()) << name << " in " << precision.dtype;
      }
      const Choice choice = choice_of(scores, mask);
      if (file.has(name + ".score_sum")) {
        compare_choices(file, name, gate, choice, 1e-5);
      } else if (file.has(name + ".count")) {
        EXPECT_EQ(choice.count, file.tensor(name + ".count").to_vector<double>()) << name;
      }
      ++masks;
    }
  return std::to_string(masks) + " masks";
}

TEST(D2dmoeGate, files) { for_family("d2dmoe_gate", check_file); }

}  // namespace
}  // namespace switchyard::golden
