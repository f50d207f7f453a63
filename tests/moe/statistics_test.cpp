#include "moe/statistics.h"

#include <cmath>

#include "autograd/grad_mode.h"
#include "moe/language_model.h"
#include "moe/router.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::random_tensor;

TEST(RoutingStatistics, counts_what_the_plans_say) {
  // Two slots of three experts; tokens choose two.
  const Tensor first = Tensor::from<std::int32_t>({0, 1, 2, 0, 1, 0, 2, 1}, {2, 2, 2});
  const Tensor second = Tensor::from<std::int32_t>({0, 1, 1, 2}, {1, 2, 2});
  RoutingStatistics statistics;
  EXPECT_TRUE(statistics.empty());
  EXPECT_ERROR(statistics.summary(), "RoutingStatistics: no plan was added");
  for (const Tensor& indices : {first, second}) {
    statistics.add(ops::routing_plan(indices, 3));
    statistics.add_together(indices, 3);
  }
  const RoutingSummary summary = statistics.summary();
  EXPECT_EQ(summary.tokens, 3);
  EXPECT_EQ(summary.counts, (std::vector<std::vector<double>>{{3, 3, 0}, {1, 2, 3}}));
  EXPECT_EQ(summary.together[0], (std::vector<std::vector<double>>{{3, 3, 0}, {3, 3, 0}, {0, 0, 0}}));
  EXPECT_EQ(summary.together[1], (std::vector<std::vector<double>>{{1, 0, 1}, {0, 2, 2}, {1, 2, 3}}));
  EXPECT_EQ(summary.dead_experts(), 1);
  EXPECT_DOUBLE_EQ(summary.usage(1, 2), 0.5);
  const double entropy_a = std::log(2.0);
  const double entropy_b = -(1 / 6.0 * std::log(1 / 6.0) + 1 / 3.0 * std::log(1 / 3.0) + 0.5 * std::log(0.5));
  EXPECT_NEAR(summary.entropy(), (entropy_a + entropy_b) / 2 / std::log(3.0), 1e-12);
  statistics.reset();
  EXPECT_TRUE(statistics.empty());
}

TEST(RoutingStatistics, counts_the_pairs_of_a_mask) {
  const Tensor mask = Tensor::from<std::int32_t>({1, 0, 1, 0, 0, 0, 1, 1, 1}, {3, 3}).to(DType::boolean);
  RoutingStatistics statistics;
  statistics.add(ops::routing_plan_from_mask(mask));
  EXPECT_EQ(statistics.summary().counts, (std::vector<std::vector<double>>{{2, 1, 2}}));
}

TEST(RoutingStatistics, refuses_plans_of_another_layer) {
  RoutingStatistics statistics;
  statistics.add(ops::routing_plan(Tensor::from<std::int32_t>({0, 1}, {1, 2}), 3));
  EXPECT_ERROR(statistics.add(ops::routing_plan(Tensor::from<std::int32_t>({0, 1}, {1, 2}), 4)),
               "RoutingStatistics: the plan has 1 slots and 4 experts, earlier ones had 1 and 3");
}

LanguageModelConfig small_config() {
  LanguageModelConfig config;
  config.vocabulary_size = 11;
  config.width = 8;
  config.layers = 2;
  config.context = 6;
  config.attention.experts = 3;
  config.feedforward.experts = 5;
  config.feedforward.expert_width = 4;
  return config;
}

TEST(RoutingStatistics, of_a_whole_model_by_layer) {
  const auto model = build_language_model(small_config());
  const Tensor tokens = random_tensor({2, 6}, 1, DType::i64, 0, 10);
  model->logits(tokens);
  EXPECT_TRUE(read_statistics(*model).empty()) << "nothing is counted unless asked for";
  collect_statistics(*model, Collect::together);
  model->logits(tokens);
  const auto summaries = read_statistics(*model);
  ASSERT_EQ(summaries.size(), 6u);
  EXPECT_EQ(summaries[0].name, "layers.0.attention.value_router");
  EXPECT_EQ(summaries[1].name, "layers.0.attention.output_router");
  EXPECT_EQ(summaries[2].name, "layers.0.feed_forward.router");
  for (const auto& summary : summaries) {
    EXPECT_EQ(summary.tokens, 12);
    EXPECT_EQ(summary.together.size(), static_cast<std::size_t>(summary.slots));
    for (const auto& of_slot : summary.counts) {
      double sum = 0;
      for (const double count : of_slot) sum += count;
      EXPECT_EQ(sum, 24);  // k = 2 everywhere
    }
  }
  const RoutingOverview all = overview(summaries);
  EXPECT_EQ(all.experts, 2 * (2 * 2 * 3 + 5));
  EXPECT_GT(all.entropy, 0);
  EXPECT_LE(all.entropy, 1);
  reset_statistics(*model);
  EXPECT_TRUE(read_statistics(*model).empty());
}

TEST(RoutingStatistics, recomputed_blocks_count_once) {
  const auto model = build_language_model(small_config());
  model->set_recompute(true);
  collect_statistics(*model, Collect::usage);
  const Tensor tokens = random_tensor({2, 6}, 1, DType::i64, 0, 10);
  model->loss(tokens, tokens).total.backward();
  for (const auto& summary : read_statistics(*model)) EXPECT_EQ(summary.tokens, 12) << summary.name;
  model->eval();
  reset_statistics(*model);
  const NoGradGuard no_grad;
  model->logits(tokens);
  for (const auto& summary : read_statistics(*model)) EXPECT_EQ(summary.tokens, 12) << summary.name;
}

}  // namespace
}  // namespace switchyard::moe
