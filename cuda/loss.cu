// Cross-entropy over rows of logits [n, V], a block per row: one pass for the maximum and the sum of exponentials, one
// for the gradient, which may overwrite the logits.

#include "core/kernels/loss.h"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

/// Calls f(i, elements i .. i + kWidth - 1 of the row) over the block.
template <int kWidth, class D, class F>
__device__ inline void for_vectors(const D* row, std::int64_t size, F f) {
  for (std::int64_t i = threadIdx.x * kWidth; i < size; i += blockDim.x * kWidth)
    f(i, *reinterpret_cast<const Vector<D, kWidth>*>(row + i));
}

template <int kWidth, class D, class G>
__global__ void cross_entropy_rows(const D* logits, std::int64_t classes, const std::int64_t* targets,
                                   std::int64_t ignore_index, compute_t<D>* losses, G* dlogits,
                                   const compute_t<D>* scale) {
  using A = compute_t<D>;
  __shared__ A scratch[32];
  const std::int64_t row = blockIdx.x, target = targets[row];
  const D* x = logits + row * classes;
  G* dx = dlogits ? dlogits + row * classes : nullptr;
  if (target == ignore_index) {
    if (threadIdx.x == 0) losses[row] = A(0);
    if (dx)
      for (std::int64_t i = threadIdx.x; i < classes; i += blockDim.x) dx[i] = convert<G>(A(0));
    return;
  }
  const bool valid = target >= 0 && target < classes;
  A largest = -A(INFINITY);
  for_vectors<kWidth>(x, classes, [&](std::int64_t, const Vector<D, kWidth>& v) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) largest = Max{}(load(&v.values[j]), largest);
  });
  largest = block_reduce(largest, Max{}, -A(INFINITY), scratch);
  A sum = 0;
  for_vectors<kWidth>(x, classes, [&](std::int64_t, const Vector<D, kWidth>& v) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += exp(load(&v.values[j]) - largest);
  });
  sum = block_reduce(sum, Add{}, A(0), scratch);
  if (threadIdx.x == 0) losses[row] = valid ? log(sum) + largest - load(x + target) : A(NAN);
  if (!dx) return;
  __syncthreads();  // the target's logit has been read
  const A factor = valid ? *scale : A(NAN), inverse = A(1) / sum;
  for_vectors<kWidth>(x, classes, [&](std::int64_t i, const Vector<D, kWidth>& v) {
    Vector<G, kWidth> gradient;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const A probability = exp(load(&v.values[j]) - largest) * inverse;
      gradient.values[j] = convert<G>((probability - (i + j == target ? A(1) : A(0))) * factor);
    }
    *reinterpret_cast<Vector<G, kWidth>*>(dx + i) = gradient;
  });
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
  const std::int64_t classes = logits.size(1);
  const auto launch = [&](auto logit_tag, auto gradient_tag) {
    using T = typename decltype(logit_tag)::type;
    using G = typename decltype(gradient_tag)::type;
    using A = accumulate_t<T>;
    constexpr int kWide = 16 / sizeof(T);
    const auto fits = [&](const Tensor& t) {
      return !t.defined() || reinterpret_cast<std::uintptr_t>(t.raw()) % (kWide * size_of(t.dtype())) == 0;
    };
    const bool wide = classes % kWide == 0 && fits(logits) && fits(dlogits);
    const auto kernel =
        wide ? cross_entropy_rows<kWide, device_t<T>, device_t<G>> : cross_entropy_rows<1, device_t<T>, device_t<G>>;
    kernel<<<blocks_for(logits.size(0), 1), classes >= 2048 ? 512 : 128, 0, stream_of(logits)>>>(
        pointer<T>(logits), classes, targets.data<std::int64_t>(), ignore_index, pointer<A>(losses),
        pointer<G>(dlogits), pointer<A>(scale));
  };
  if (dlogits.defined() && logits.dtype() == DType::f32 && dlogits.dtype() == DType::bf16)
    launch(TypeTag<float>{}, TypeTag<bfloat16>{});
  else dispatch_floating(logits.dtype(), "cross_entropy", [&](auto tag) { launch(tag, tag); });
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
