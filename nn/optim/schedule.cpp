#include "nn/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace switchyard::nn::schedule {
namespace {

void check_span(const char* name, std::int64_t warmup, std::int64_t total, double final_fraction) {
  check(warmup >= 0 && warmup <= total, name, " schedule: ", warmup, " warm-up updates of ", total);
  check(final_fraction >= 0 && final_fraction <= 1, name, " schedule: final fraction ", final_fraction,
        ", expected 0 to 1");
}

double ratio(std::int64_t a, std::int64_t b) { return static_cast<double>(a) / static_cast<double>(b); }

/// Share of the way from `warmup` to `total`, 0 to 1.
double progress(std::int64_t update, std::int64_t warmup, std::int64_t total) {
  return total > warmup ? std::min(1.0, ratio(update - warmup, total - warmup)) : 1.0;
}

double half_cosine(double x) { return 0.5 * (1 + std::cos(std::numbers::pi * x)); }

}  // namespace

Schedule constant(std::int64_t warmup) {
  check(warmup >= 0, "constant schedule: ", warmup, " warm-up updates");
  return [warmup](std::int64_t i) { return i < warmup ? ratio(i, warmup) : 1.0; };
}

Schedule linear(std::int64_t warmup, std::int64_t total, double final_fraction) {
  check_span("linear", warmup, total, final_fraction);
  return [=](std::int64_t i) {
    if (i < warmup) return ratio(i, warmup);
    return 1 - (1 - final_fraction) * progress(i, warmup, total);
  };
}

Schedule cosine(std::int64_t warmup, std::int64_t total, double final_fraction) {
  check_span("cosine", warmup, total, final_fraction);
  return [=](std::int64_t i) {
    if (i < warmup) return ratio(i, warmup);
    return final_fraction + (1 - final_fraction) * half_cosine(progress(i, warmup, total));
  };
}

Schedule cosine_annealing(std::int64_t total) {
  check(total > 0, "cosine_annealing schedule: ", total, " updates, expected at least 1");
  return [total](std::int64_t i) { return half_cosine(ratio(i, total)); };
}

Schedule switchhead_warmup_then_cosine(std::int64_t warmup, std::int64_t total) {
  check_span("switchhead_warmup_then_cosine", warmup, total, 0);
  const Schedule annealing = cosine_annealing(total);
  return [warmup, annealing](std::int64_t i) { return i < warmup ? ratio(i + 1, warmup) : annealing(i - warmup); };
}

}  // namespace switchyard::nn::schedule
