// The experts that together have a share of a row's total score. No row is sorted: an expert is wanted when the shares
// of all better ones do not reach what is asked for, and every thread adds those up for an expert of its own. That is
// E^2 additions a row, of E scores that stay in the first-level cache.

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

}  // namespace

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
