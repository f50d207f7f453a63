#include "core/ops/routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/support/close.h"
#include "tests/support/device.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using testing::random_mask;

/// The first k of a stable sort: not excluded first, then numbers before NaN, then larger first.
std::vector<std::int32_t> naive_top_k(const std::vector<double>& scores, const std::vector<int>& excluded,
                                      std::size_t k) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto class_of = [&](std::int32_t i) {
    const auto at = static_cast<std::size_t>(i);
    return excluded[at] * 2 + std::isnan(scores[at]);
  };
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    if (class_of(a) / 2 != class_of(b) / 2) return class_of(a) < class_of(b);
    const double left = scores[static_cast<std::size_t>(a)], right = scores[static_cast<std::size_t>(b)];
    if (std::isnan(left) || std::isnan(right)) return !std::isnan(left) && std::isnan(right);
    return left > right;
  });
  order.resize(k);
  return order;
}

TEST(TopK, EqualsAStableSort) {
  std::mt19937 random(1);
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (const std::int64_t experts : {1, 2, 5, 16, 33, 300}) {
      for (const std::int64_t k : {std::int64_t{1}, (experts + 1) / 2, experts}) {
        const std::int64_t rows = 40;
        std::vector<double> scores(static_cast<std::size_t>(rows * experts));
        for (double& score : scores) score = static_cast<int>(random() % 5) - 2;  // many ties
        scores[0] = -std::numeric_limits<double>::infinity();
        for (double& score : scores)
          if (random() % 8 == 0) score = std::numeric_limits<double>::quiet_NaN();
        if (experts > 2) scores[2] = -std::numeric_limits<double>::quiet_NaN();
        std::vector<int> excluded(scores.size());
        for (int& bit : excluded) bit = random() % 3 == 0;
        const Tensor mask = Tensor::from(excluded, {4, 10, experts}).to(DType::boolean);
        const Tensor input = Tensor::from(scores, {4, 10, experts}).to(dtype);

        const auto with_mask = ops::top_k(input, k, mask).to_vector<std::int32_t>();
        const auto without = ops::top_k(input, k).to_vector<std::int32_t>();
        for (std::int64_t row = 0; row < rows; ++row) {
          const auto first = scores.begin() + row * experts;
          const std::vector<double> row_scores(first, first + experts);
          const std::vector<int> row_excluded(excluded.begin() + row * experts, excluded.begin() + (row + 1) * experts);
          const auto result = [&](const std::vector<std::int32_t>& all) {
            return std::vector<std::int32_t>(all.begin() + row * k, all.begin() + (row + 1) * k);
          };
          ASSERT_EQ(result(with_mask), naive_top_k(row_scores, row_excluded, static_cast<std::size_t>(k)));
          ASSERT_EQ(result(without),
                    naive_top_k(row_scores, std::vector<int>(row_scores.size(), 0), static_cast<std::size_t>(k)));
        }
      }
    }
  }
}

TEST(TopK, OfAStridedViewAndOfNothing) {
  const Tensor scores = Tensor::from<float>({1, 4, 2, 5, 3, 6}, {3, 2}).transpose(0, 1);  // [[1, 2, 3], [4, 5, 6]]
  EXPECT_EQ(ops::top_k(scores, 2).to_vector<std::int32_t>(), (std::vector<std::int32_t>{2, 1, 2, 1}));
  EXPECT_EQ(ops::top_k(Tensor::zeros({0, 4}), 2).shape(), (Shape{0, 2}));
  const Tensor all_nan = Tensor::full({1, 3}, std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(ops::top_k(all_nan, 2).to_vector<std::int32_t>(), (std::vector<std::int32_t>{0, 1}));
}

TEST(TopK, Errors) {
  EXPECT_ERROR(ops::top_k(Tensor::zeros({3, 4}), 5), "top_k: k = 5 is not in 1..4, the last size of scores [3, 4]");
  EXPECT_ERROR(ops::top_k(Tensor::zeros({3, 4}), 0), "top_k: k = 0 is not in 1..4");
  EXPECT_ERROR(ops::top_k(Tensor::zeros({3, 4}, DType::i32), 1), "top_k: scores must be floating, got i32");
  EXPECT_ERROR(ops::top_k(Tensor::zeros({3, 4}), 1, Tensor::zeros({3, 3}, DType::boolean)),
               "top_k: excluded has shape [3, 3], scores have [3, 4]");
  EXPECT_ERROR(ops::top_k(Tensor::zeros({3, 4}), 1, Tensor::zeros({3, 4})), "top_k: excluded must be bool, got f32");
}

/// The gate of expert e of a row, by its formula.
double naive_gate(ops::GateFunction function, const std::vector<double>& scores,
                  const std::vector<std::int32_t>& chosen, std::int32_t e) {
  double sum = 0;
  const double own = scores[static_cast<std::size_t>(e)];
  switch (function) {
    case ops::GateFunction::sigmoid: return 1 / (1 + std::exp(-own));
    case ops::GateFunction::softmax:
      for (const double score : scores) sum += std::exp(score);
      break;
    case ops::GateFunction::softmax_of_chosen:
      for (const std::int32_t c : chosen) sum += std::exp(scores[static_cast<std::size_t>(c)]);
  }
  return std::exp(own) / sum;
}

TEST(ExpertGates, EqualTheirFormulas) {
  std::mt19937 random(4);
  std::uniform_real_distribution<double> uniform(-3, 3);
  for (const auto function :
       {ops::GateFunction::sigmoid, ops::GateFunction::softmax, ops::GateFunction::softmax_of_chosen})
    for (const std::int64_t experts : {1, 2, 5, 40})
      for (const std::int64_t k : {std::int64_t{1}, (experts + 1) / 2, experts}) {
        std::vector<double> values(static_cast<std::size_t>(6 * experts));
        for (double& value : values) value = uniform(random);
        const Tensor scores = Tensor::from(values, {3, 2, experts});
        const Tensor indices = ops::top_k(scores, k);
        const auto chosen = indices.to_vector<std::int32_t>();
        const auto gates = ops::expert_gates(scores, indices, function, DType::f64).to_vector<double>();
        const auto rounded = ops::expert_gates(scores.to(DType::f32), indices, function, DType::bf16);
        EXPECT_EQ(rounded.dtype(), DType::bf16);
        EXPECT_CLOSE(rounded, Tensor::from(gates, indices.shape()), 1e-2);
        for (std::int64_t row = 0; row < 6; ++row) {
          const std::vector<double> row_scores(values.begin() + row * experts, values.begin() + (row + 1) * experts);
          const std::vector<std::int32_t> row_chosen(chosen.begin() + row * k, chosen.begin() + (row + 1) * k);
          for (std::int64_t j = 0; j < k; ++j)
            EXPECT_NEAR(gates[static_cast<std::size_t>(row * k + j)],
                        naive_gate(function, row_scores, row_chosen, row_chosen[static_cast<std::size_t>(j)]), 1e-14);
        }
      }
}

TEST(MeanSelection, EqualsItsFormulaOverManyTokens) {
  const std::int64_t tokens = 2500, slots = 2, experts = 5;
  const Tensor scores = testing::random_tensor({tokens, slots, experts}, 3, DType::f64, -3, 3);
  const auto values = scores.to_vector<double>();
  std::vector<double> mean(static_cast<std::size_t>(slots * experts), 0);
  for (std::int64_t row = 0; row < tokens * slots; ++row) {
    const std::vector<double> own(values.begin() + row * experts, values.begin() + (row + 1) * experts);
    for (std::int64_t e = 0; e < experts; ++e)
      mean[static_cast<std::size_t>(row % slots * experts + e)] +=
          naive_gate(ops::GateFunction::softmax, own, {}, static_cast<std::int32_t>(e)) / static_cast<double>(tokens);
  }
  double entropy = 0;
  for (const double m : mean) entropy -= m * std::log(m) / static_cast<double>(slots);
  const ops::MeanSelection selection = ops::mean_selection(scores);
  EXPECT_CLOSE(selection.mean, Tensor::from(mean, {slots, experts}), 1e-12);
  EXPECT_NEAR(selection.negative_entropy.item<double>(), -entropy, 1e-12);
}

TEST(MeanSelection, Errors) {
  EXPECT_ERROR(ops::mean_selection(Tensor::zeros({0, 1, 4})),
               "mean_selection: scores must be [N, H, E], got [0, 1, 4]");
  EXPECT_ERROR(ops::mean_selection(Tensor::zeros({3, 1, 4}, DType::bf16)),
               "mean_selection: scores must be f32 or f64, got bf16");
}

TEST(ExpertGates, Errors) {
  const Tensor scores = Tensor::zeros({3, 4}), indices = Tensor::zeros({3, 2}, DType::i32);
  const auto run = [](const Tensor& s, const Tensor& i, DType dtype) {
    return ops::expert_gates(s, i, ops::GateFunction::sigmoid, dtype);
  };
  EXPECT_EQ(run(Tensor::zeros({0, 4}), Tensor::zeros({0, 2}, DType::i32), DType::bf16).shape(), (Shape{0, 2}));
  EXPECT_ERROR(run(scores, indices, DType::f64), "expert_gates: for gates of f64 the scores must be f64, got f32");
  EXPECT_ERROR(run(scores, scores, DType::f32), "expert_gates: indices must be i32");
  EXPECT_ERROR(run(scores, Tensor::zeros({2, 2}, DType::i32), DType::f32),
               "expert_gates: indices [2, 2] do not name experts of the rows of scores [3, 4]");
  EXPECT_ERROR(ops::expert_gates_backward(scores, scores, indices, ops::GateFunction::sigmoid),
               "expert_gates_backward: dgates must have the shape [3, 2] of indices");
}

/// Compares with the definition: for each expert, its choices in order. chosen[choice] is the expert, or -1.
void expect_plan(const ops::RoutingPlan& plan, const std::vector<std::int64_t>& chosen) {
  ASSERT_EQ(plan.max_pairs(), static_cast<std::int64_t>(chosen.size()));
  ASSERT_EQ(plan.expert_offsets.shape(), Shape{plan.experts + 1});
  const auto offsets = plan.expert_offsets.to_vector<std::int32_t>();
  const auto pair_to_choice = plan.pair_to_choice.to_vector<std::int32_t>();
  const auto choice_to_pair = plan.choice_to_pair.to_vector<std::int32_t>();
  std::int32_t pair = 0;
  for (std::int64_t expert = 0; expert < plan.experts; ++expert) {
    ASSERT_EQ(offsets[static_cast<std::size_t>(expert)], pair);
    for (std::size_t choice = 0; choice < chosen.size(); ++choice) {
      if (chosen[choice] != expert) continue;
      ASSERT_EQ(pair_to_choice[static_cast<std::size_t>(pair)], static_cast<std::int32_t>(choice));
      ASSERT_EQ(choice_to_pair[choice], pair);
      ++pair;
    }
  }
  ASSERT_EQ(offsets.back(), pair);
  for (std::size_t choice = 0; choice < chosen.size(); ++choice) {
    if (chosen[choice] < 0) {
      ASSERT_EQ(choice_to_pair[choice], -1);
    }
  }
}

struct PlanCase {
  std::int64_t tokens, slots, experts, k;
};

TEST(RoutingPlan, FromIndicesEqualsItsDefinition) {
  std::mt19937 random(2);
  const PlanCase cases[] = {
      {0, 1, 4, 2},  {1, 1, 1, 1},   {1, 3, 5, 2}, {7, 1, 4, 4}, {9, 2, 50, 3} /* empty experts */,
      {30, 4, 3, 3}, {9000, 2, 7, 4} /* several blocks */};
  for (const auto& [tokens, slots, experts, k] : cases) {
    SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << slots << " slots, " << experts << " experts, k "
                                      << k);
    std::vector<std::int32_t> indices;
    std::vector<std::int64_t> chosen;
    for (std::int64_t row = 0; row < tokens * slots; ++row) {
      std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random);
      for (std::int64_t j = 0; j < k; ++j) {
        indices.push_back(order[static_cast<std::size_t>(j)]);
        chosen.push_back(row % slots * experts + order[static_cast<std::size_t>(j)]);
      }
    }
    const auto plan = ops::routing_plan(Tensor::from(indices, {tokens, slots, k}), experts);
    EXPECT_EQ(plan.tokens, tokens);
    EXPECT_EQ(plan.slots, slots);
    EXPECT_EQ(plan.choices, k);
    EXPECT_EQ(plan.experts, slots * experts);
    expect_plan(plan, chosen);
    if (slots == 1) expect_plan(ops::routing_plan(Tensor::from(indices, {tokens, k}), experts), chosen);
  }
}

TEST(RoutingPlan, FromMaskEqualsItsDefinition) {
  std::mt19937 random(3);
  for (const auto& [tokens, slots, experts, percent] :
       {PlanCase{0, 1, 4, 50}, {1, 1, 3, 50}, {6, 2, 4, 0}, {6, 2, 4, 100}, {50, 3, 5, 30}, {9000, 1, 8, 20}}) {
    const Tensor mask = random_mask({tokens, slots, experts}, random, static_cast<unsigned>(percent));
    std::vector<std::int64_t> chosen;
    for (const int taken : mask.to_vector<int>()) {
      const auto i = static_cast<std::int64_t>(chosen.size());
      chosen.push_back(taken ? i / experts % slots * experts + i % experts : -1);
    }
    const auto plan = ops::routing_plan_from_mask(mask);
    EXPECT_EQ(plan.choices, experts);
    expect_plan(plan, chosen);
  }
}

TEST(RoutingPlan, ExpertsOutsideTheirRange) {
  SKIP_ON_GPU("the host does not read indices there");
  EXPECT_ERROR(ops::routing_plan(Tensor::from<std::int32_t>({0, 1, 4, 0}, {2, 2}), 4),
               "routing_plan: expert 4 of token 1 is not in 0..3");
  EXPECT_ERROR(ops::routing_plan(Tensor::from<std::int32_t>({-1}, {1, 1}), 4),
               "routing_plan: expert -1 of token 0 is not in 0..3");
}

TEST(RoutingPlan, Errors) {
  EXPECT_ERROR(ops::routing_plan(Tensor::zeros({2, 2}), 4), "routing_plan: indices must be i32, got f32");
  EXPECT_ERROR(ops::routing_plan(Tensor::zeros({4}, DType::i32), 4),
               "routing_plan: indices must be [N, C] or [N, H, C], got [4]");
  EXPECT_ERROR(ops::routing_plan(Tensor::zeros({4, 1}, DType::i32), 0), "routing_plan: experts_per_slot = 0");
  EXPECT_ERROR(ops::routing_plan_from_mask(Tensor::zeros({2, 2})),
               "routing_plan_from_mask: the mask must be bool, got f32");
}

}  // namespace
}  // namespace switchyard
