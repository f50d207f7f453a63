#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <utility>

namespace switchyard {

/// Calls f(first, last) on pieces that cover begin..end once, on all OpenMP threads. A piece has at least `grain`
/// elements (the last one may have fewer), so a range no longer than that runs on the calling thread, as does every
/// loop inside another one. Which thread runs which piece is not fixed: results must not depend on the cutting.
/// The first exception thrown in a piece reaches the caller; pieces not yet begun are then skipped.
template <class F>
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, F&& f) {
  const std::int64_t count = end - begin;
  if (count <= 0) return;
  const std::int64_t threads = omp_get_max_threads();
  // A few pieces a thread, so that a thread which the system interrupts does not hold up the others.
  const std::int64_t piece = std::max({grain, std::int64_t{1}, (count + 4 * threads - 1) / (4 * threads)});
  if (threads == 1 || piece >= count || omp_in_parallel()) {
    f(begin, end);
    return;
  }
  std::exception_ptr error;
  bool failed = false;
  const std::int64_t pieces = (count + piece - 1) / piece;
#pragma omp parallel for schedule(dynamic) num_threads(static_cast <int>(std::min(threads, pieces)))
  for (std::int64_t i = 0; i < pieces; ++i) {
    bool skip;
#pragma omp atomic read
    skip = failed;
    if (skip) continue;
    try {
      f(begin + i * piece, std::min(end, begin + (i + 1) * piece));
    } catch (...) {
#pragma omp critical(switchyard_parallel_for)
      if (!error) error = std::current_exception();
#pragma omp atomic write
      failed = true;
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace switchyard
