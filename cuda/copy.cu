// copy and fill. A dense copy within one dtype is left to the driver's copy engine.

#include "core/kernels/copy.h"
#include "cuda/elementwise.cuh"

namespace switchyard::cuda {
namespace {

struct Same {
  template <class A>
  __device__ A operator()(A x) const {
    return x;
  }
};

template <class A>
struct Constant {
  A value;
  __device__ A operator()() const { return value; }
};

}  // namespace

void copy(const Tensor& from, const Tensor& to) {
  if (from.dtype() == to.dtype() && from.is_contiguous() && to.is_contiguous()) {
    check_cuda(cudaMemcpyAsync(to.raw(), from.raw(), to.bytes(), cudaMemcpyDeviceToDevice, stream_of(to)), "copy");
    return;
  }
  dispatch_all(from.dtype(), "copy", [&](auto from_tag) {
    dispatch_all(to.dtype(), "copy", [&](auto to_tag) {
      map<typename decltype(to_tag)::type, typename decltype(from_tag)::type>("copy", Same{}, to, from);
    });
  });
}

void fill(const Tensor& to, double value) {
  if (value == 0 && to.is_contiguous()) {
    check_cuda(cudaMemsetAsync(to.raw(), 0, to.bytes(), stream_of(to)), "fill");
    return;
  }
  dispatch_all(to.dtype(), "fill", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = compute_t<device_t<T>>;
    map<T>("fill", Constant<A>{std::is_same_v<T, bool> ? static_cast<A>(value != 0) : static_cast<A>(value)}, to);
  });
}

}  // namespace switchyard::cuda
