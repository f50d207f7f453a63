// Top-k selection and the routing plan. Both are small next to the expert products: a plan is a stable counting sort of
// the choices by expert, three passes over 4 bytes a choice.

#include "core/kernels/routing.h"

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

/// Keeps the k best in order. With k far below E most experts fail the first comparison, with the worst one kept.
template <class T>
void top_k_row(const T* scores, const bool* excluded, std::int64_t experts, std::int64_t k, std::int32_t* indices,
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
  for (std::int64_t j = 0; j < k; ++j) indices[j] = best[static_cast<std::size_t>(j)].expert;
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
    parallel_for(0, scores.size(0), std::max<std::int64_t>(1, 16384 / experts), [&](auto first, auto last) {
      std::vector<Candidate<accumulate_t<T>>> best;
      best.reserve(static_cast<std::size_t>(k));
      for (std::int64_t row = first; row < last; ++row) {
        top_k_row(in + row * experts, skip ? skip + row * experts : nullptr, experts, k, out + row * k, best);
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
