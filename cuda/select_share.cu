// The experts near the largest score of a row, and those that together have a share of a row's total score. For these
// no row is sorted: an expert is wanted when the shares of all better ones do not reach what is asked for, and every
// thread adds those up for an expert of its own. That is E^2 additions a row, of E scores that stay in the first-level
// cache.

#include "core/kernels/routing.h"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

/// One block per row.
template <class D>
__global__ void share_of_row(const D* scores, int experts, compute_t<D> share, bool* mask) {
  using A = compute_t<D>;
  __shared__ A scratch[32];
  const D* row = scores + static_cast<std::int64_t>(blockIdx.x) * experts;
  A sum = 0;
  for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) sum += load(row + expert);
  sum = block_reduce(sum, Add{}, A(0), scratch);
  for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
    const A own = load(row + expert);
    A before = 0;
    bool first = true;
    for (int other = 0; other < experts; ++other) {
      const A score = load(row + other);
      if (!(score > own || (score == own && other < expert))) continue;
      before += score / sum;
      first = false;
    }
    mask[static_cast<std::int64_t>(blockIdx.x) * experts + expert] = first || !(before >= share);
  }
}

/// A warp for each row.
template <class D>
__global__ void near_maximum_of_row(const D* scores, std::int64_t rows, int experts, compute_t<D> factor, bool* mask) {
  using A = compute_t<D>;
  const std::int64_t index = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (index >= rows) return;
  const int lane = threadIdx.x % 32;
  const D* row = scores + index * experts;
  A maximum = load(row);
#pragma unroll 8
  for (int expert = lane; expert < experts; expert += 32) maximum = Max{}(maximum, load(row + expert));
  maximum = warp_reduce(maximum, Max{});
  const A least = maximum < 0 ? maximum : factor * maximum;  // NaN where a score is: then none is below it
#pragma unroll 8
  for (int expert = lane; expert < experts; expert += 32)
    mask[index * experts + expert] = !(load(row + expert) < least);
}

}  // namespace

void select_near_maximum(const Tensor& scores, double tau, const Tensor& mask) {
  dispatch_floating(scores.dtype(), "select_near_maximum", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = compute_t<device_t<T>>;
    near_maximum_of_row<<<blocks_for(scores.size(0) * 32, kThreads), kThreads, 0, stream_of(scores)>>>(
        pointer<T>(scores), scores.size(0), static_cast<int>(scores.size(1)), static_cast<A>(1 - tau),
        mask.data<bool>());
  });
  check_launch("select_near_maximum");
}

void select_share(const Tensor& scores, double share, const Tensor& mask) {
  const int experts = static_cast<int>(scores.size(1));
  const int threads = std::min(kThreads, (experts + 31) / 32 * 32);
  dispatch_floating(scores.dtype(), "select_share", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = compute_t<device_t<T>>;
    share_of_row<<<blocks_for(scores.size(0), 1), threads, 0, stream_of(scores)>>>(
        pointer<T>(scores), experts, static_cast<A>(share), mask.data<bool>());
  });
  check_launch("select_share");
}

}  // namespace switchyard::cuda
