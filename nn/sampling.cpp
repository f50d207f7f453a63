#include "nn/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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

}  // namespace

std::int64_t sample(const std::vector<double>& logits, const SamplingOptions& options, Generator& generator) {
  check_options(options);
  check(!logits.empty(), "sample: no logits");
  for (const double logit : logits) check(!std::isnan(logit), "sample: a logit is NaN");
  std::vector<std::size_t> order(logits.size());  // most probable first, the lower index first among equals
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto better = [&](std::size_t a, std::size_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  if (options.temperature == 0) return static_cast<std::int64_t>(*std::min_element(order.begin(), order.end(), better));
  std::sort(order.begin(), order.end(), better);
  if (options.top_k > 0 && static_cast<std::size_t>(options.top_k) < order.size())
    order.resize(static_cast<std::size_t>(options.top_k));

  std::vector<double> weights;
  double total = 0;
  for (const std::size_t i : order) {
    weights.push_back(std::exp((logits[i] - logits[order[0]]) / options.temperature));
    total += weights.back();
  }
  if (options.top_p < 1) {
    double sum = 0;
    std::size_t kept = 0;
    while (kept < weights.size() && sum < options.top_p * total) sum += weights[kept++];
    weights.resize(kept);
    total = sum;
  }
  double left = ops::uniform({1}, generator.next(1)).item<double>() * total;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    left -= weights[i];
    if (left < 0) return static_cast<std::int64_t>(order[i]);
  }
  return static_cast<std::int64_t>(order[weights.size() - 1]);  // rounding used up the sum
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
