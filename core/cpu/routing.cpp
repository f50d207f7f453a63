// Top-k selection, gates and the routing plan. All are small next to the expert products: a plan is a stable counting
// sort of the choices by expert, three passes over 4 bytes a choice.

#include "core/kernels/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/parallel.h"

namespace switchyard::cpu {

namespace {

/// Why an expert is preferred before its score is looked at.
enum Level : std::uint8_t { kExcluded, kNan, kOrdinary };

template <class A>
struct Candidate {
  A score;
  std::int32_t expert;
  Level level;

  bool better_than(const Candidate& other) const {
    if (level != other.level) return level > other.level;
    return score > other.score || (score == other.score && expert < other.expert);
  }
};

template <class T, class A>
Candidate<A> candidate(const T* scores, const bool* excluded, std::int64_t expert) {
  const A score = static_cast<A>(scores[expert]);
  const bool is_nan = std::isnan(score);
  const Level level = excluded && excluded[expert] ? kExcluded : is_nan ? kNan : kOrdinary;
  return {is_nan ? -std::numeric_limits<A>::infinity() : score, static_cast<std::int32_t>(expert), level};
}

constexpr std::int64_t kFewChosen = 16;

/// The k best come first, in order. For few of them: most experts fail the first comparison, with the worst one kept.
template <class T>
void keep_best(const T* scores, const bool* excluded, std::int64_t experts, std::int64_t k,
               std::vector<Candidate<accumulate_t<T>>>& best) {
  using A = accumulate_t<T>;
  best.clear();
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    const Candidate<A> next = candidate<T, A>(scores, excluded, expert);
    if (static_cast<std::int64_t>(best.size()) == k) {
      if (!next.better_than(best.back())) continue;
      best.pop_back();
    }
    std::size_t at = best.size();
    best.push_back(next);
    for (; at > 0 && next.better_than(best[at - 1]); --at) best[at] = best[at - 1];
    best[at] = next;
  }
}

/// The same for many.
template <class T>
void sort_best(const T* scores, const bool* excluded, std::int64_t experts, std::int64_t k,
               std::vector<Candidate<accumulate_t<T>>>& best) {
  best.clear();
  for (std::int64_t expert = 0; expert < experts; ++expert)
    best.push_back(candidate<T, accumulate_t<T>>(scores, excluded, expert));
  const auto better = [](const auto& a, const auto& b) { return a.better_than(b); };
  std::nth_element(best.begin(), best.begin() + k, best.end(), better);
  std::sort(best.begin(), best.begin() + k, better);
}

/// Marks experts, best first, until their scores reach the share of the row's sum.
template <class T>
void select_share_row(const T* scores, std::int64_t experts, double share, bool* mask,
                      std::vector<Candidate<accumulate_t<T>>>& order) {
  using A = accumulate_t<T>;
  order.clear();
  A sum = 0, before = 0;
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    order.push_back(candidate<T, A>(scores, nullptr, expert));
    sum += static_cast<A>(scores[expert]);
    mask[expert] = false;
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.better_than(b); });
  for (const auto& next : order) {
    mask[next.expert] = true;
    before += next.score / sum;
    if (before >= static_cast<A>(share)) break;  // never where the sum is 0: no comparison with NaN holds
  }
}

/// The gates of one row as a function of an expert's score.
template <class A>
class RowGates {
 public:
  RowGates(ops::GateFunction function, const A* scores, const std::int32_t* chosen, std::int64_t experts,
           std::int64_t k)
      : function_(function) {
    if (function == ops::GateFunction::sigmoid) return;
    const bool of_all = function == ops::GateFunction::softmax;
    const auto score = [&](std::int64_t i) { return scores[of_all ? i : chosen[i]]; };
    const std::int64_t count = of_all ? experts : k;
    maximum_ = score(0);
    for (std::int64_t i = 1; i < count; ++i) maximum_ = std::max(maximum_, score(i));
    sum_ = 0;
    for (std::int64_t i = 0; i < count; ++i) sum_ += std::exp(score(i) - maximum_);
  }

  A operator()(A score) const {
    return function_ == ops::GateFunction::sigmoid ? 1 / (1 + std::exp(-score)) : std::exp(score - maximum_) / sum_;
  }

 private:
  ops::GateFunction function_;
  A maximum_ = 0, sum_ = 1;
};

/// ds = dg g (1 - g) for sigmoid; ds = g (dg - sum of dg g) for softmax, with dg = 0 for experts not chosen.
template <class T, class A>
void gate_gradients_of_row(ops::GateFunction function, const T* dgates, const A* scores, const std::int32_t* chosen,
                           std::int64_t experts, std::int64_t k, A* dscores) {
  const RowGates<A> gate(function, scores, chosen, experts, k);
  A dot = 0;
  if (function != ops::GateFunction::sigmoid)
    for (std::int64_t j = 0; j < k; ++j) dot += static_cast<A>(dgates[j]) * gate(scores[chosen[j]]);
  for (std::int64_t e = 0; e < experts; ++e)
    dscores[e] = function == ops::GateFunction::softmax ? -gate(scores[e]) * dot : A(0);
  for (std::int64_t j = 0; j < k; ++j) {
    const A g = gate(scores[chosen[j]]), dg = static_cast<A>(dgates[j]);
    if (function == ops::GateFunction::sigmoid) dscores[chosen[j]] += dg * g * (1 - g);
    else dscores[chosen[j]] += g * (function == ops::GateFunction::softmax ? dg : dg - dot);
  }
}

/// Calls f(TypeTag<A>{}) with the type of an f32 or f64 tensor.
template <class F>
void with_compute_type(DType dtype, F f) {
  if (dtype == DType::f64) f(TypeTag<double>{});
  else f(TypeTag<float>{});
}

/// The experts of the choices, from indices or from a mask; -1 for a choice not taken.
struct Choices {
  const std::int32_t* indices;
  const bool* mask;
  std::int64_t slots, choices, experts_per_slot;

  std::int64_t expert(std::int64_t row, std::int64_t j) const {
    const std::int64_t first = row % slots * experts_per_slot;
    const std::int64_t at = row * choices + j;
    if (mask) return mask[at] ? first + j : -1;
    const std::int32_t index = indices[at];
    check(index >= 0 && index < experts_per_slot, "routing_plan: expert ", index, " of token ", row / slots,
          " is not in 0..", experts_per_slot - 1);
    return first + index;
  }
};

}  // namespace

void top_k(const Tensor& scores, const Tensor& excluded, const Tensor& indices) {
  const std::int64_t experts = scores.size(1), k = indices.size(1);
  const bool* skip = excluded.defined() ? excluded.data<bool>() : nullptr;
  auto* out = indices.data<std::int32_t>();
  dispatch_floating(scores.dtype(), "top_k", [&]<class T>(TypeTag<T>) {
    const T* in = scores.data<T>();
    const auto rank = k <= kFewChosen ? keep_best<T> : sort_best<T>;
    parallel_for(0, scores.size(0), std::max<std::int64_t>(1, 16384 / experts), [&](auto first, auto last) {
      std::vector<Candidate<accumulate_t<T>>> best;
      best.reserve(static_cast<std::size_t>(experts));
      for (std::int64_t row = first; row < last; ++row) {
        rank(in + row * experts, skip ? skip + row * experts : nullptr, experts, k, best);
        for (std::int64_t j = 0; j < k; ++j) out[row * k + j] = best[static_cast<std::size_t>(j)].expert;
      }
    });
  });
}

void select_share(const Tensor& scores, double share, const Tensor& mask) {
  const std::int64_t experts = scores.size(1);
  dispatch_floating(scores.dtype(), "select_share", [&]<class T>(TypeTag<T>) {
    parallel_for(0, scores.size(0), std::max<std::int64_t>(1, 4096 / experts), [&](auto first, auto last) {
      std::vector<Candidate<accumulate_t<T>>> order;
      order.reserve(static_cast<std::size_t>(experts));
      for (std::int64_t row = first; row < last; ++row)
        select_share_row(scores.data<T>() + row * experts, experts, share, mask.data<bool>() + row * experts, order);
    });
  });
}

void select_near_maximum(const Tensor& scores, double tau, const Tensor& mask) {
  const std::int64_t experts = scores.size(1);
  dispatch_floating(scores.dtype(), "select_near_maximum", [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    const T* in = scores.data<T>();
    bool* out = mask.data<bool>();
    parallel_for(0, scores.size(0), std::max<std::int64_t>(1, 16384 / experts), [&](auto first, auto last) {
      for (std::int64_t row = first; row < last; ++row) {
        const T* own = in + row * experts;
        A largest = static_cast<A>(own[0]);
        std::int32_t has_nan = 0;
#pragma omp simd reduction(max : largest) reduction(| : has_nan)
        for (std::int64_t expert = 0; expert < experts; ++expert) {
          const A score = static_cast<A>(own[expert]);
          largest = score > largest ? score : largest;
          has_nan |= score != score ? 1 : 0;
        }
        if (has_nan != 0) largest = std::numeric_limits<A>::quiet_NaN();
        const A least = largest < 0 ? largest : static_cast<A>(1 - tau) * largest;  // no score is below NaN
        bool* chosen = out + row * experts;
#pragma omp simd
        for (std::int64_t expert = 0; expert < experts; ++expert)
          chosen[expert] = !(static_cast<A>(own[expert]) < least);
      }
    });
  });
}

void expert_gates(const Tensor& scores, const Tensor& indices, ops::GateFunction function, const Tensor& gates) {
  const std::int64_t experts = scores.size(1), k = indices.size(1);
  const auto* chosen = indices.data<std::int32_t>();
  dispatch_floating(gates.dtype(), "expert_gates", [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    const A* in = scores.data<A>();
    T* out = gates.data<T>();
    parallel_for(0, scores.size(0), std::max<std::int64_t>(1, 4096 / experts), [&](auto first, auto last) {
      for (std::int64_t row = first; row < last; ++row) {
        const RowGates<A> gate(function, in + row * experts, chosen + row * k, experts, k);
        for (std::int64_t i = row * k; i < (row + 1) * k; ++i)
          out[i] = static_cast<T>(gate(in[row * experts + chosen[i]]));
      }
    });
  });
}

void expert_gates_backward(const Tensor& dgates, const Tensor& scores, const Tensor& indices,
                           ops::GateFunction function, const Tensor& dscores) {
  const std::int64_t experts = scores.size(1), k = indices.size(1);
  const auto* chosen = indices.data<std::int32_t>();
  dispatch_floating(dgates.dtype(), "expert_gates_backward", [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    parallel_for(0, scores.size(0), std::max<std::int64_t>(1, 4096 / experts), [&](auto first, auto last) {
      for (std::int64_t row = first; row < last; ++row)
        gate_gradients_of_row(function, dgates.data<T>() + row * k, scores.data<A>() + row * experts, chosen + row * k,
                              experts, k, dscores.data<A>() + row * experts);
    });
  });
}

// Blocks of tokens are of a fixed size and summed in order, so the result does not depend on the number of threads.
void mean_selection(const Tensor& scores, const Tensor& mean, const Tensor& terms) {
  constexpr std::int64_t kTokens = 1024;
  const std::int64_t tokens = scores.size(0), slots = scores.size(1), experts = scores.size(2);
  const std::int64_t blocks = (tokens + kTokens - 1) / kTokens, width = slots * experts;
  with_compute_type(scores.dtype(), [&]<class A>(TypeTag<A>) {
    const A* in = scores.data<A>();
    std::vector<A> sums(static_cast<std::size_t>(blocks * width), A(0));
    parallel_for(0, blocks, 1, [&](auto first, auto last) {
      for (std::int64_t block = first; block < last; ++block)
        for (std::int64_t row = block * kTokens * slots; row < std::min(tokens, (block + 1) * kTokens) * slots; ++row) {
          const A* own = in + row * experts;
          const RowGates<A> gate(ops::GateFunction::softmax, own, nullptr, experts, 0);
          A* sum = sums.data() + block * width + row % slots * experts;
          for (std::int64_t e = 0; e < experts; ++e) sum[e] += gate(own[e]);
        }
    });
    for (std::int64_t i = 0; i < width; ++i) {
      A sum = 0;
      for (std::int64_t block = 0; block < blocks; ++block) sum += sums[static_cast<std::size_t>(block * width + i)];
      const A m = sum / static_cast<A>(tokens);
      mean.data<A>()[i] = m;
      terms.data<A>()[i] = m > 0 ? m * std::log(m) / static_cast<A>(slots) : 0;
    }
  });
}

// The value's derivative for m_e is c_e = (log m_e + 1) / H. ds_e = p_e (c_e - sum of p c) / N, with p = softmax(s).
void mean_selection_backward(const Tensor& dvalue, const Tensor& scores, const Tensor& mean, const Tensor& dscores) {
  const std::int64_t tokens = scores.size(0), slots = scores.size(1), experts = scores.size(2);
  with_compute_type(scores.dtype(), [&]<class A>(TypeTag<A>) {
    const A scale = *dvalue.data<A>() / static_cast<A>(tokens * slots);
    std::vector<A> coefficients;
    for (std::int64_t i = 0; i < slots * experts; ++i) {
      const A m = mean.data<A>()[i];
      coefficients.push_back(m > 0 ? scale * (std::log(m) + 1) : 0);
    }
    parallel_for(0, tokens * slots, std::max<std::int64_t>(1, 4096 / experts), [&](auto first, auto last) {
      for (std::int64_t row = first; row < last; ++row) {
        const A* own = scores.data<A>() + row * experts;
        const A* c = coefficients.data() + row % slots * experts;
        const RowGates<A> gate(ops::GateFunction::softmax, own, nullptr, experts, 0);
        A dot = 0;
        for (std::int64_t e = 0; e < experts; ++e) dot += gate(own[e]) * c[e];
        A* out = dscores.data<A>() + row * experts;
        for (std::int64_t e = 0; e < experts; ++e) out[e] = gate(own[e]) * (c[e] - dot);
      }
    });
  });
}

// 1. Count the pairs of each expert, separately for a few blocks of rows.  2. Running sums over (expert, block) say
// where each block's pairs of an expert begin.  3. Each block places its pairs. The result does not depend on the
// blocks.
void build_routing_plan(const Tensor& indices, const Tensor& mask, const ops::RoutingPlan& plan) {
  const Choices choices = {indices.defined() ? indices.data<std::int32_t>() : nullptr,
                           mask.defined() ? mask.data<bool>() : nullptr, plan.slots, plan.choices,
                           plan.slots > 0 ? plan.experts / plan.slots : 0};
  auto* offsets = plan.expert_offsets.data<std::int32_t>();
  auto* pair_to_choice = plan.pair_to_choice.data<std::int32_t>();
  auto* choice_to_pair = plan.choice_to_pair.data<std::int32_t>();
  const std::int64_t rows = plan.rows(), experts = plan.experts;
  const std::int64_t blocks = std::clamp<std::int64_t>(plan.max_pairs() / 16384, 1, omp_get_max_threads());
  const auto block_begin = [&](std::int64_t block) { return rows * block / blocks; };

  std::vector<std::int32_t> counts(static_cast<std::size_t>(blocks * experts), 0);
  const auto for_each_choice = [&](auto&& visit) {
    parallel_for(0, blocks, 1, [&](auto first, auto last) {
      for (std::int64_t block = first; block < last; ++block) {
        std::int32_t* count = counts.data() + block * experts;
        for (std::int64_t row = block_begin(block); row < block_begin(block + 1); ++row) {
          for (std::int64_t j = 0; j < plan.choices; ++j) {
            visit(count, choices.expert(row, j), static_cast<std::int32_t>(row * plan.choices + j));
          }
        }
      }
    });
  };
  for_each_choice([](std::int32_t* count, std::int64_t expert, std::int32_t) {
    if (expert >= 0) ++count[expert];
  });
  std::int32_t next = 0;
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    offsets[expert] = next;
    for (std::int64_t block = 0; block < blocks; ++block) {
      next += std::exchange(counts[static_cast<std::size_t>(block * experts + expert)], next);
    }
  }
  offsets[experts] = next;
  for_each_choice([&](std::int32_t* count, std::int64_t expert, std::int32_t choice) {
    const std::int32_t pair = expert >= 0 ? count[expert]++ : -1;
    choice_to_pair[choice] = pair;
    if (pair >= 0) pair_to_choice[pair] = choice;
  });
  std::fill(pair_to_choice + next, pair_to_choice + plan.max_pairs(), -1);
}

}  // namespace switchyard::cpu
