#include "moe/router.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "autograd/gradcheck.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/routing.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::element;
using testing::random_tensor;

RouterOptions options_for(std::int64_t width, std::int64_t slots, std::int64_t experts, std::int64_t k,
                          SelectionKind selection = SelectionKind::sigmoid) {
  RouterOptions options;
  options.width = width;
  options.slots = slots;
  options.experts = experts;
  options.k = k;
  options.selection = selection;
  return options;
}

/// Scores of row (n, h), by the definition.
std::vector<double> naive_scores(const Tensor& x, const Tensor& weight, std::int64_t n, std::int64_t h,
                                 std::int64_t experts) {
  std::vector<double> scores;
  for (std::int64_t e = 0; e < experts; ++e) {
    double score = 0;
    for (std::int64_t d = 0; d < x.size(2); ++d)
      score += element(x, {n / x.size(1), n % x.size(1), d}) * element(weight, {h * experts + e, d});
    scores.push_back(score);
  }
  return scores;
}

std::vector<std::int64_t> naive_top_k(const std::vector<double>& scores, std::int64_t k) {
  std::vector<std::int64_t> order(scores.size());
  for (std::size_t e = 0; e < order.size(); ++e) order[e] = static_cast<std::int64_t>(e);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(k));
  return order;
}

double naive_gate(SelectionKind selection, const std::vector<double>& scores, const std::vector<std::int64_t>& chosen,
                  std::int64_t expert) {
  const double own = scores[static_cast<std::size_t>(expert)];
  double sum = 0;
  switch (selection) {
    case SelectionKind::softmax:
      for (const double score : scores) sum += std::exp(score);
      return std::exp(own) / sum;
    case SelectionKind::softmax_after_topk:
      for (const auto e : chosen) sum += std::exp(scores[static_cast<std::size_t>(e)]);
      return std::exp(own) / sum;
    default: return 1 / (1 + std::exp(-own));
  }
}

TEST(Router, chooses_and_gates_as_defined) {
  struct Case {
    std::int64_t batch, length, width, slots, experts, k;
  };
  for (const Case& c : {Case{2, 5, 7, 3, 4, 2}, Case{1, 1, 3, 1, 5, 1}, Case{2, 3, 4, 2, 3, 3}, Case{1, 4, 6, 1, 1, 1}})
    for (const auto selection : {SelectionKind::sigmoid, SelectionKind::softmax, SelectionKind::softmax_after_topk}) {
      Router router(options_for(c.width, c.slots, c.experts, c.k, selection));
      router.to(DType::f64);
      const Tensor x = random_tensor({c.batch, c.length, c.width}, 3);
      const Tensor weight = router.parameters()[0].data();
      const Routing routing = router.route(Variable(x));
      ASSERT_EQ(routing.indices.shape(), Shape({c.batch * c.length, c.slots, c.k}));
      EXPECT_EQ(routing.plan.experts, c.slots * c.experts);
      for (std::int64_t n = 0; n < c.batch * c.length; ++n)
        for (std::int64_t h = 0; h < c.slots; ++h) {
          const auto scores = naive_scores(x, weight, n, h, c.experts);
          const auto chosen = naive_top_k(scores, c.k);
          for (std::int64_t j = 0; j < c.k; ++j) {
            const auto expert = chosen[static_cast<std::size_t>(j)];
            EXPECT_EQ(element(routing.indices, {n, h, j}), static_cast<double>(expert));
            EXPECT_NEAR(element(routing.gates.data(), {n, h, j}), naive_gate(selection, scores, chosen, expert), 1e-12);
          }
        }
    }
}

TEST(Router, rows_start_with_equal_norm) {
  RouterOptions options = options_for(33, 2, 5, 2);
  options.init_scale = 0.4;
  const Router router(options);
  const Tensor weight = router.parameters()[0].data();
  for (std::int64_t row = 0; row < 10; ++row) {
    double norm = 0;
    for (const double value : weight.select(0, row).to_vector<double>()) norm += value * value;
    EXPECT_NEAR(std::sqrt(norm), 0.4, 1e-6);
  }
}

TEST(Router, expert_dropout_hides_experts_in_training_only) {
  RouterOptions options = options_for(8, 2, 6, 2);
  options.expert_dropout = 0.4;
  Router router(options);
  const Variable x(random_tensor({4, 200, 8}, 5, DType::f32));
  router.eval();
  const Routing plain = router.route(x);
  router.train();
  const auto state = default_generator(default_device()).step_offset();
  const Routing dropped = router.route(x);
  default_generator(default_device()).set_step_offset(state);
  EXPECT_EQ(router.route(x).indices.to_vector<int>(), dropped.indices.to_vector<int>());
  // The best expert is hidden from 40% of the rows.
  const auto a = plain.indices.to_vector<int>(), b = dropped.indices.to_vector<int>();
  int changed = 0;
  for (std::size_t row = 0; row < a.size(); row += 2) changed += a[row] != b[row];
  const double share = 2.0 * changed / static_cast<double>(a.size());
  EXPECT_NEAR(share, 0.4, 0.05);
  // Gates are those of the scores themselves.
  const Tensor scores = dropped.scores.data(), gates = dropped.gates.data();
  for (std::int64_t n = 0; n < 20; ++n) {
    const auto expert = static_cast<std::int64_t>(element(dropped.indices, {n, 1, 0}));
    EXPECT_NEAR(element(gates, {n, 1, 0}), 1 / (1 + std::exp(-element(scores, {n, 1, expert}))), 1e-6);
  }
}

TEST(Router, sinkhorn_follows_its_definition_and_balances) {
  const std::int64_t batch = 2, length = 7, slots = 2, experts = 3, rounds = 4;
  const Tensor scores = random_tensor({batch, length, slots, experts}, 11, DType::f64, -3, 3);
  const Tensor actual = sinkhorn_offsets(scores, rounds);
  ASSERT_EQ(actual.shape(), Shape({batch, 1, slots, experts}));
  for (std::int64_t s = 0; s < batch; ++s)
    for (std::int64_t h = 0; h < slots; ++h) {
      std::vector<double> a(experts, 0), b(length);
      for (std::int64_t round = 0; round < rounds; ++round) {
        for (std::int64_t t = 0; t < length; ++t) {
          double sum = 0;
          for (std::int64_t e = 0; e < experts; ++e) sum += std::exp(element(scores, {s, t, h, e}) - a[e]);
          b[t] = std::log(length) - std::log(sum);
        }
        for (std::int64_t e = 0; e < experts; ++e) {
          double sum = 0;
          for (std::int64_t t = 0; t < length; ++t) sum += std::exp(element(scores, {s, t, h, e}) - b[t]);
          a[e] = std::log(experts) - std::log(sum);
        }
      }
      for (std::int64_t e = 0; e < experts; ++e) EXPECT_NEAR(element(actual, {s, 0, h, e}), a[e], 1e-12);
    }
}

TEST(Router, sinkmoid_balances_only_in_training) {
  Router router(options_for(6, 1, 4, 1, SelectionKind::sinkmoid));
  router.to(DType::f64);
  const Variable x(random_tensor({1, 64, 6}, 2, DType::f64, 0, 1));  // one-sided inputs favour few experts
  const auto largest_share = [&] {
    std::vector<int> counts(4);
    for (const int e : router.route(x).indices.to_vector<int>()) ++counts[static_cast<std::size_t>(e)];
    return *std::max_element(counts.begin(), counts.end());
  };
  const int trained = largest_share();
  router.eval();
  EXPECT_LT(trained, largest_share());
}

TEST(Router, bf16_tokens_are_scored_in_f32) {
  Router router(options_for(16, 1, 4, 2));
  router.to(DType::bf16);
  const Routing routing = router.route(Variable(random_tensor({1, 3, 16}, 1, DType::bf16)));
  EXPECT_EQ(routing.scores.dtype(), DType::f32);
  EXPECT_EQ(routing.gates.dtype(), DType::bf16);
}

TEST(Router, refuses_what_cannot_be_built_or_read) {
  EXPECT_ERROR(Router(options_for(4, 1, 3, 4)), "Router: k is 4, expected 1 to the 3 experts");
  EXPECT_ERROR(Router(options_for(4, 1, 3, 0)), "Router: k is 0");
  EXPECT_ERROR(Router(options_for(0, 1, 3, 1)), "Router: width is 0");
  RouterOptions dropout = options_for(4, 1, 3, 1);
  dropout.expert_dropout = 1;
  EXPECT_ERROR(Router(dropout), "Router: expert_dropout is 1");
  Router router(options_for(4, 1, 3, 1));
  EXPECT_ERROR(router.route(Variable(Tensor::zeros({2, 4}))), "Router: tokens must be [B, T, 4], got [2, 4]");
}

TEST(EntropyRegularizer, is_minus_the_entropy_of_mean_use) {
  const std::int64_t tokens = 6, slots = 2, experts = 4;
  const Tensor scores = random_tensor({tokens, slots, experts}, 8, DType::f64, -4, 4);
  double expected = 0;
  for (std::int64_t h = 0; h < slots; ++h) {
    std::vector<double> mean(experts, 0);
    for (std::int64_t n = 0; n < tokens; ++n) {
      double sum = 0;
      for (std::int64_t e = 0; e < experts; ++e) sum += std::exp(element(scores, {n, h, e}));
      for (std::int64_t e = 0; e < experts; ++e) mean[e] += std::exp(element(scores, {n, h, e})) / sum / tokens;
    }
    for (const double m : mean) expected += m * std::log(m) / slots;
  }
  EXPECT_NEAR(negative_selection_entropy(Variable(scores)).item<double>(), expected, 1e-13);
  const auto result =
      gradcheck([](const Variables& in) { return negative_selection_entropy(in[0]); }, {Variable(scores, true)});
  EXPECT_TRUE(result) << result.message;
}

TEST(EntropyRegularizer, survives_experts_that_nobody_wants) {
  const Variable scores(Tensor::from({0.0, -5000.0, 0.0, -5000.0}, {2, 1, 2}), true);
  const Variable value = negative_selection_entropy(scores);
  EXPECT_EQ(value.item<double>(), 0);
  value.backward();
  for (const double g : scores.grad().to_vector<double>()) EXPECT_EQ(g, 0);
}

}  // namespace
}  // namespace switchyard::moe
