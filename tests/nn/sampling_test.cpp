#include "nn/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "core/ops/random.h"
#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "tests/support/close.h"

namespace switchyard::nn {
namespace {

std::vector<double> frequencies(const std::vector<double>& logits, const SamplingOptions& options) {
  Generator generator(1);
  constexpr int kDraws = 4000;
  std::vector<double> result(logits.size());
  for (int i = 0; i < kDraws; ++i) result[static_cast<std::size_t>(sample(logits, options, generator))] += 1.0 / kDraws;
  return result;
}

TEST(Sample, follows_the_probabilities) {
  const std::vector<double> p = {0.1, 0.4, 0.2, 0.3};
  std::vector<double> logits;
  for (const double v : p) logits.push_back(std::log(v) + 5);
  SamplingOptions options;
  const auto plain = frequencies(logits, options);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(plain[i], p[i], 0.03);

  options.temperature = 0.5;  // squares the probabilities: 1 : 16 : 4 : 9
  const auto colder = frequencies(logits, options);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(colder[i], p[i] * p[i] / 0.30, 0.03);

  options = {};
  options.top_k = 2;
  const auto best_two = frequencies(logits, options);
  EXPECT_EQ(best_two[0] + best_two[2], 0);
  EXPECT_NEAR(best_two[1], 4.0 / 7, 0.03);

  options = {};
  options.top_p = 0.75;  // 0.4 + 0.3 is not enough, 0.4 + 0.3 + 0.2 is
  const auto nucleus = frequencies(logits, options);
  EXPECT_EQ(nucleus[0], 0);
  EXPECT_NEAR(nucleus[2], 2.0 / 9, 0.03);
  options.top_p = 1e-9;
  EXPECT_NEAR(frequencies(logits, options)[1], 1, 1e-9) << "at least one token is kept";
}

/// What sample() is to draw, found by sorting all logits.
std::int64_t sample_of_sorted(const std::vector<double>& logits, const SamplingOptions& options, Generator& generator) {
  std::vector<std::pair<double, std::int64_t>> order;
  for (const double logit : logits) order.emplace_back(-logit, std::ssize(order));
  std::sort(order.begin(), order.end());
  if (options.top_k > 0) order.resize(std::min(order.size(), static_cast<std::size_t>(options.top_k)));
  const auto weight = [&](const auto& item) { return std::exp((order[0].first - item.first) / options.temperature); };
  double total = 0, kept = 0;
  for (const auto& item : order) total += weight(item);
  const double wanted = options.top_p * total;
  std::size_t count = 0;
  while (count < order.size() && (options.top_p == 1 || kept < wanted)) kept += weight(order[count++]);
  double left = ops::uniform({1}, generator.next(1)).item<double>() * kept;
  std::size_t at = 0;
  while (at + 1 < count && (left -= weight(order[at])) >= 0) ++at;
  return order[at].second;
}

TEST(Sample, draws_as_if_all_logits_were_sorted) {
  std::mt19937 random(1);
  Generator a(1), b(1);
  for (const std::size_t size : {1, 2, 63, 64, 65, 257, 3000})
    for (const std::int64_t top_k : {0, 1, 5, 64, 100, 3000})
      for (const double top_p : {1e-9, 0.5, 0.999, 1.0})
        for (const double temperature : {0.1, 1.0, 50.0}) {
          std::vector<double> logits(size);
          for (double& logit : logits) logit = static_cast<double>(random() % 40) / 4;  // many ties
          logits[random() % size] = -INFINITY;
          if (size == 1) logits[0] = 0;
          const SamplingOptions options{.temperature = temperature, .top_k = top_k, .top_p = top_p};
          for (int draw = 0; draw < 5; ++draw)
            ASSERT_EQ(sample(logits, options, a), sample_of_sorted(logits, options, b))
                << size << " logits, top_k " << top_k << ", top_p " << top_p << ", temperature " << temperature;
        }
}

TEST(Sample, temperature_zero_takes_the_first_of_the_best) {
  SamplingOptions options;
  options.temperature = 0;
  Generator generator(1);
  EXPECT_EQ(sample({1, 3, 2, 3}, options, generator), 1);
  EXPECT_EQ(sample({1, INFINITY, 2}, options, generator), 1);
}

TEST(Sample, says_what_is_wrong) {
  Generator generator(1);
  SamplingOptions options;
  EXPECT_ERROR(sample({}, options, generator), "sample: no logits");
  EXPECT_ERROR(sample({1, NAN}, options, generator), "sample: a logit is NaN");
  EXPECT_ERROR(sample({1, INFINITY}, options, generator), "sample: the largest logit is inf, expected a finite number");
  EXPECT_ERROR(sample({-INFINITY}, options, generator), "sample: the largest logit is -inf, expected a finite number");
  options.temperature = -1;
  EXPECT_ERROR(sample({1}, options, generator), "sampling: temperature -1, expected 0 or more");
  options = {};
  options.top_p = 0;
  EXPECT_ERROR(sample({1}, options, generator), "sampling: top_p 0, expected 0 < p <= 1");
  options = {};
  options.top_k = -2;
  EXPECT_ERROR(sample({1}, options, generator), "sampling: top_k -2 is negative");
  options = {};
  options.context = 1;
  EXPECT_ERROR(sample({1}, options, generator), "sampling: context 1, expected 0 or at least 2");
}

std::unique_ptr<LanguageModel> small_model() {
  Generator generator(2);
  MultiHeadAttentionOptions attention;
  attention.width = 8;
  attention.heads = 2;
  FeedForwardOptions feed_forward;
  feed_forward.width = 8;
  std::vector<std::unique_ptr<TransformerBlock>> blocks;
  blocks.push_back(std::make_unique<TransformerBlock>(
      make_norm(NormKind::layernorm, 8), std::make_unique<MultiHeadAttention>(attention, generator),
      make_norm(NormKind::layernorm, 8), std::make_unique<FeedForward>(feed_forward, generator), 0.5));
  LanguageModelOptions options;
  options.vocabulary_size = 13;
  options.width = 8;
  options.embedding_init = init::normal(1);
  return std::make_unique<LanguageModel>(options, std::move(blocks), generator);
}

TEST(Generate, greedy_text_is_what_the_full_pass_finds_most_probable) {
  const auto model = small_model();
  SamplingOptions options;
  options.count = 20;
  options.temperature = 0;
  Generator generator(1);
  std::vector<std::int64_t> text = {3, 1};
  const auto added = generate(*model, text, options, generator);
  EXPECT_TRUE(model->training()) << "the mode is put back";
  ASSERT_EQ(added.size(), 20u);
  model->eval();
  for (const std::int64_t token : added) {
    const Tensor input = Tensor::from(text, {1, static_cast<std::int64_t>(text.size())});
    const auto logits = model->logits(input).data().select(1, input.size(1) - 1).to_vector<double>();
    EXPECT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(), token);
    text.push_back(token);
  }
}

TEST(Generate, depends_on_the_generator_alone) {
  const auto model = small_model();
  SamplingOptions options;
  options.count = 30;
  Generator a(1), b(1), c(2);
  const auto first = generate(*model, {0}, options, a);
  EXPECT_EQ(generate(*model, {0}, options, b), first);
  EXPECT_NE(generate(*model, {0}, options, c), first);
}

TEST(Generate, looks_back_no_further_than_the_context) {
  const auto model = small_model();
  SamplingOptions options;
  options.count = 40;
  options.context = 8;
  options.temperature = 0;
  Generator generator(1);
  EXPECT_EQ(generate(*model, std::vector<std::int64_t>(30, 5), options, generator).size(), 40u)
      << "a prompt longer than the context is cut";
  // With a context of 2 each token depends on the one before alone, so greedy text runs into a cycle of at most
  // one period per token of the vocabulary.
  options.context = 2;
  const auto text = generate(*model, {1}, options, generator);
  std::set<std::int64_t> seen(text.begin(), text.end());
  EXPECT_LE(seen.size(), 13u);
  EXPECT_ERROR(generate(*model, {}, options, generator), "generate: the prompt needs at least one token");
  EXPECT_ERROR(generate(*model, {13}, options, generator), default_device().is_cuda() ? "a logit is NaN" : "embedding");
}

}  // namespace
}  // namespace switchyard::nn
