// The mask's part where all experts run: the neurons of those not chosen become 0. Only what is not zeroed or kept as a
// whole is read.

#include "core/kernels/masked_feed_forward.h"
#include "cuda/access.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

/// A block for a row of hidden [N, E S]; each thread takes kValues neighbours at a time.
template <int kValues, class D>
__global__ void zero_others(const bool* mask, int experts, int neurons, D* hidden) {
  const bool* row = mask + static_cast<std::int64_t>(blockIdx.x) * experts;
  D* own = hidden + static_cast<std::int64_t>(blockIdx.x) * experts * neurons;
  for (int first = threadIdx.x * kValues; first < experts * neurons; first += blockDim.x * kValues) {
    int expert = first / neurons, rest = neurons - (first - expert * neurons);  // neurons of this expert still to come
    bool kept[kValues], all = true, any = false;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      if (rest-- == 0) ++expert, rest = neurons - 1;
      kept[i] = row[expert];
      all &= kept[i];
      any |= kept[i];
    }
    if (all) continue;
    auto* at = reinterpret_cast<Vector<D, kValues>*>(own + first);
    Vector<D, kValues> values;
    if (any) values = *at;
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      if (!kept[i]) values.values[i] = convert<D>(compute_t<D>(0));
    *at = values;
  }
}

}  // namespace

void keep_chosen(const Tensor& hidden, const Tensor& mask) {
  dispatch_floating(hidden.dtype(), "masked_feed_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access<T, 16, 8, 4>(hidden.size(1), {&hidden}, [&](auto access) {
      const auto experts = static_cast<int>(mask.size(1)), neurons = static_cast<int>(hidden.size(1)) / experts;
      zero_others<access.value><<<blocks_for(hidden.size(0), 1), kThreads, 0, stream_of(hidden)>>>(
          mask.data<bool>(), experts, neurons, pointer<T>(hidden));
    });
  });
  check_launch("masked_feed_forward: mask");
}

}  // namespace switchyard::cuda
