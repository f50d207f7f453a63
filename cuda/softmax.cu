// Softmax, log-softmax and logsumexp over rows of [n, d], a block per row. The row is read again from cache for each
// pass; device memory sees it once for the lengths that occur.

#include "core/kernels/softmax.h"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

/// f(i) summed over the row by the whole block.
template <class A, class F>
__device__ A row_sum(std::int64_t width, A* scratch, F f) {
  A sum = 0;
  for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) sum += f(i);
  return block_reduce(sum, Add{}, A(0), scratch);
}

template <class D, class A>
__device__ A row_max(const D* row, std::int64_t width, A* scratch) {
  A largest = -A(INFINITY);
  for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) largest = Max{}(load(row + i), largest);
  return block_reduce(largest, Max{}, -A(INFINITY), scratch);
}

enum class Kind { softmax, log_softmax, logsumexp };

template <Kind kind, class D>
__global__ void forward_rows(const D* x, std::int64_t width, D* y) {
  using A = compute_t<D>;
  __shared__ A scratch[32];
  const D* row = x + blockIdx.x * width;
  const A largest = row_max<D, A>(row, width, scratch);
  const A shift = largest == -A(INFINITY) ? A(0) : largest;  // a row of -inf throughout
  const A sum = row_sum<A>(width, scratch, [&](std::int64_t i) { return exp(load(row + i) - shift); });
  if constexpr (kind == Kind::logsumexp) {
    if (threadIdx.x == 0) y[blockIdx.x] = convert<D>(largest == A(INFINITY) ? largest : shift + log(sum));
    return;
  }
  // Of a row that is -inf throughout every probability is 0.
  const A inverse = sum == A(0) ? A(0) : A(1) / sum, log_sum = sum == A(0) ? A(0) : log(sum);
  for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const A value = load(row + i) - shift;
    y[blockIdx.x * width + i] = convert<D>(kind == Kind::softmax ? exp(value) * inverse : value - log_sum);
  }
}

template <Kind kind, class D>
__global__ void backward_rows(const D* dy, const D* y, std::int64_t width, D* dx) {
  using A = compute_t<D>;
  __shared__ A scratch[32];
  dy += blockIdx.x * width;
  y += blockIdx.x * width;
  dx += blockIdx.x * width;
  const A sum = row_sum<A>(width, scratch, [&](std::int64_t i) {
    return kind == Kind::softmax ? load(dy + i) * load(y + i) : load(dy + i);
  });
  for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const A g = load(dy + i), value = load(y + i);
    dx[i] = convert<D>(kind == Kind::softmax ? value * (g - sum) : g - exp(value) * sum);
  }
}

int threads_for(std::int64_t width) { return width <= 64 ? 32 : width <= 1024 ? 128 : 512; }

template <Kind kind>
void forward(const char* op, const Tensor& x, const Tensor& y) {
  if (x.numel() == 0) return;
  dispatch_floating(x.dtype(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward_rows<kind><<<blocks_for(x.size(0), 1), threads_for(x.size(1)), 0, stream_of(x)>>>(pointer<T>(x), x.size(1),
                                                                                              pointer<T>(y));
  });
  check_launch(op);
}

template <Kind kind>
void backward(const char* op, const Tensor& dy, const Tensor& y, const Tensor& dx) {
  if (y.numel() == 0) return;
  dispatch_floating(y.dtype(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    backward_rows<kind><<<blocks_for(y.size(0), 1), threads_for(y.size(1)), 0, stream_of(y)>>>(
        pointer<T>(dy), pointer<T>(y), y.size(1), pointer<T>(dx));
  });
  check_launch(op);
}

}  // namespace

void softmax(const Tensor& x, const Tensor& y) { forward<Kind::softmax>("softmax", x, y); }
void log_softmax(const Tensor& x, const Tensor& y) { forward<Kind::log_softmax>("log_softmax", x, y); }
void logsumexp(const Tensor& x, const Tensor& y) { forward<Kind::logsumexp>("logsumexp", x, y); }

void softmax_backward(const Tensor& dy, const Tensor& y, const Tensor& dx) {
  backward<Kind::softmax>("softmax_backward", dy, y, dx);
}
void log_softmax_backward(const Tensor& dy, const Tensor& y, const Tensor& dx) {
  backward<Kind::log_softmax>("log_softmax_backward", dy, y, dx);
}

}  // namespace switchyard::cuda
