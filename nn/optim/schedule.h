#pragma once

#include <cstdint>
#include <functional>

namespace switchyard::nn {

/// The factor of the base learning rate in update i = 0, 1, ...
using Schedule = std::function<double(std::int64_t update)>;

/// Schedules. `warmup` updates rise linearly from 0 (i / warmup); the rest, up to `total`, falls from 1 to
/// `final_fraction`, which also holds beyond.
namespace schedule {

Schedule constant(std::int64_t warmup = 0);
Schedule linear(std::int64_t warmup, std::int64_t total, double final_fraction = 0);
/// Half a cosine.
Schedule cosine(std::int64_t warmup, std::int64_t total, double final_fraction = 0);
/// (1 + cos(pi i / total)) / 2.
Schedule cosine_annealing(std::int64_t total);
/// The rule of the SwitchHead paper's training: (i + 1) / warmup in warm-up, then cosine_annealing(total) at
/// i - warmup, so that it is still above 0 at i = total.
Schedule switchhead_warmup_then_cosine(std::int64_t warmup, std::int64_t total);

}  // namespace schedule
}  // namespace switchyard::nn
