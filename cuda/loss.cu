// Cross-entropy over rows of logits [n, V], a block per row: one pass for the maximum and the sum of exponentials, one
// for the gradient, which may overwrite the logits.

#include "core/kernels/loss.h"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

template <class D>
__global__ void cross_entropy_rows(const D* logits, std::int64_t classes, const std::int64_t* targets,
                                   std::int64_t ignore_index, compute_t<D>* losses, D* dlogits,
                                   const compute_t<D>* scale) {
  using A = compute_t<D>;
  __shared__ A scratch[32];
  const std::int64_t row = blockIdx.x, target = targets[row];
  const D* x = logits + row * classes;
  D* dx = dlogits ? dlogits + row * classes : nullptr;
  if (target == ignore_index) {
    if (threadIdx.x == 0) losses[row] = A(0);
    if (dx)
      for (std::int64_t i = threadIdx.x; i < classes; i += blockDim.x) dx[i] = convert<D>(A(0));
    return;
  }
  const bool valid = target >= 0 && target < classes;
  A largest = -A(INFINITY);
  for (std::int64_t i = threadIdx.x; i < classes; i += blockDim.x) largest = Max{}(load(x + i), largest);
  largest = block_reduce(largest, Max{}, -A(INFINITY), scratch);
  A sum = 0;
  for (std::int64_t i = threadIdx.x; i < classes; i += blockDim.x) sum += exp(load(x + i) - largest);
  sum = block_reduce(sum, Add{}, A(0), scratch);
  if (threadIdx.x == 0) losses[row] = valid ? log(sum) + largest - load(x + target) : A(NAN);
  if (!dx) return;
  __syncthreads();  // the target's logit has been read
  const A factor = valid ? *scale : A(NAN), inverse = A(1) / sum;
  for (std::int64_t i = threadIdx.x; i < classes; i += blockDim.x) {
    const A probability = exp(load(x + i) - largest) * inverse;
    dx[i] = convert<D>((probability - (i == target ? A(1) : A(0))) * factor);
  }
}

template <class A>
__global__ void inverse_count(const std::int64_t* targets, std::int64_t n, std::int64_t ignore_index, A* inverse) {
  __shared__ std::int64_t scratch[32];
  std::int64_t count = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) count += targets[i] != ignore_index;
  count = block_reduce(count, Add{}, std::int64_t{0}, scratch);
  if (threadIdx.x == 0) *inverse = count > 0 ? A(1) / static_cast<A>(count) : A(0);
}

}  // namespace

void cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t ignore_index, const Tensor& losses,
                   const Tensor& dlogits, const Tensor& scale) {
  if (logits.size(0) == 0) return;
  dispatch_floating(logits.dtype(), "cross_entropy", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const int threads = logits.size(1) >= 2048 ? 512 : 128;
    cross_entropy_rows<<<blocks_for(logits.size(0), 1), threads, 0, stream_of(logits)>>>(
        pointer<T>(logits), logits.size(1), targets.data<std::int64_t>(), ignore_index, pointer<A>(losses),
        pointer<T>(dlogits), pointer<A>(scale));
  });
  check_launch("cross_entropy");
}

void inverse_target_count(const Tensor& targets, std::int64_t ignore_index, const Tensor& inverse) {
  dispatch_floating(inverse.dtype(), "inverse_target_count", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (!std::is_same_v<T, bfloat16>)
      inverse_count<<<1, 1024, 0, stream_of(targets)>>>(targets.data<std::int64_t>(), targets.numel(), ignore_index,
                                                        inverse.data<T>());
  });
  check_launch("inverse_target_count");
}

}  // namespace switchyard::cuda
