#include "nn/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/ops/random.h"

namespace switchyard::nn {
namespace {

/// Switches a module to evaluation and back.
class EvaluationScope {
 public:
  explicit EvaluationScope(Module& module) : module_(module), was_training_(module.training()) { module.eval(); }
  ~EvaluationScope() { module_.train(was_training_); }
  EvaluationScope(const EvaluationScope&) = delete;
  EvaluationScope& operator=(const EvaluationScope&) = delete;

 private:
  Module& module_;
  bool was_training_;
};

void check_options(const SamplingOptions& options) {
  check(options.count >= 0, "sampling: count ", options.count, " is negative");
  check(options.temperature >= 0 && std::isfinite(options.temperature), "sampling: temperature ", options.temperature,
        ", expected 0 or more");
  check(options.top_k >= 0, "sampling: top_k ", options.top_k, " is negative");
  check(options.top_p > 0 && options.top_p <= 1, "sampling: top_p ", options.top_p, ", expected 0 < p <= 1");
  check(options.context == 0 || options.context >= 2, "sampling: context ", options.context,
        ", expected 0 or at least 2");
}

/// Places in `logits`, most probable first, the lower one first among equals. They are sorted only as far as asked for.
class Ranking {
 public:
  explicit Ranking(const std::vector<double>& logits) : logits_(logits), order_(logits.size()) {
    std::iota(order_.begin(), order_.end(), std::size_t{0});
  }

  std::size_t operator[](std::size_t rank) {
    if (rank >= sorted_) sort_to(std::min(order_.size(), std::max({rank + 1, kFirst, 4 * sorted_})));
    return order_[rank];
  }

 private:
  static constexpr std::size_t kFirst = 64;

  void sort_to(std::size_t count) {
    const auto better = [this](std::size_t a, std::size_t b) {
      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    };
    const auto at = [this](std::size_t place) { return order_.begin() + static_cast<std::ptrdiff_t>(place); };
    std::nth_element(at(sorted_), at(count - 1), order_.end(), better);
    std::sort(at(sorted_), at(count), better);
    sorted_ = count;
  }

  const std::vector<double>& logits_;
  std::vector<std::size_t> order_;  // the first sorted_ are the best, in order
  std::size_t sorted_ = 0;
};

}  // namespace

std::int64_t sample(const std::vector<double>& logits, const SamplingOptions& options, Generator& generator) {
  check_options(options);
  check(!logits.empty(), "sample: no logits");
  for (const double logit : logits) check(!std::isnan(logit), "sample: a logit is NaN");
  const auto largest = std::max_element(logits.begin(), logits.end());  // the first of them
  if (options.temperature == 0) return largest - logits.begin();
  check(std::isfinite(*largest), "sample: the largest logit is ", *largest, ", expected a finite number");

  const auto weight = [&](std::size_t i) { return std::exp((logits[i] - *largest) / options.temperature); };
  Ranking ranking(logits);
  std::size_t kept = logits.size();
  if (options.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(options.top_k));
  double total = 0;  // of all logits: in no order, as it takes none
  for (std::size_t rank = 0; rank < kept; ++rank) total += weight(kept < logits.size() ? ranking[rank] : rank);
  if (options.top_p < 1) {
    const double wanted = options.top_p * total;
    const std::size_t most = std::exchange(kept, 0);
    for (total = 0; kept < most && total < wanted; ++kept) total += weight(ranking[kept]);
  }
  double left = ops::uniform({1}, generator.next(1)).item<double>() * total;
  for (std::size_t rank = 0; rank + 1 < kept; ++rank) {
    left -= weight(ranking[rank]);
    if (left < 0) return static_cast<std::int64_t>(ranking[rank]);
  }
  return static_cast<std::int64_t>(ranking[kept - 1]);  // also where rounding used up the sum
}

std::vector<std::int64_t> generate(LanguageModel& model, const std::vector<std::int64_t>& prompt,
                                   const SamplingOptions& options, Generator& generator) {
  check_options(options);
  check(!prompt.empty(), "generate: the prompt needs at least one token");
  EvaluationScope evaluation(model);
  const Device device = model.parameters().at(0).device();
  std::vector<std::int64_t> text = prompt;
  DecodingState state;
  std::size_t decoded = 0;  // tokens of `text` that are in the state
  for (std::int64_t n = 0; n < options.count; ++n) {
    const auto limit = static_cast<std::size_t>(options.context);
    if (limit > 0 && static_cast<std::size_t>(state.length()) + (text.size() - decoded) > limit) {
      state = {};
      decoded = text.size() - std::min(text.size(), limit / 2);
    }
    const std::vector<std::int64_t> fresh(text.begin() + static_cast<std::ptrdiff_t>(decoded), text.end());
    const Tensor tokens = Tensor::from(fresh, {1, static_cast<std::int64_t>(fresh.size())}).to(device);
    const std::vector<double> logits = model.decode(tokens, state, true).to_vector<double>();
    decoded = text.size();
    text.push_back(sample(logits, options, generator));
  }
  return {text.begin() + static_cast<std::ptrdiff_t>(prompt.size()), text.end()};
}

}  // namespace switchyard::nn
