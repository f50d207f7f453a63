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

/// Units of several elements each: what a dense innermost axis allows.
template <class Unit>
__global__ void copy_units(std::int64_t count, Layout<2> layout, const Unit* from, Unit* to) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  std::int64_t at[2];
  layout.offsets(index, at);
  to[at[0]] = from[at[1]];
}

/// Copies in units of that many bytes if strides, sizes and addresses are multiples of them.
template <class Unit>
bool copy_in_units(const Tensor& from, const Tensor& to) {
  const auto elements = static_cast<std::int64_t>(sizeof(Unit) / size_of(to.dtype()));
  auto layout = layout_of<2>({&to, &from});
  const int last = layout.rank - 1;
  const auto aligned = [](const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.raw()) % sizeof(Unit) == 0; };
  if (to.numel() == 0 || elements < 2 || last < 0 || layout.size[last] % elements != 0 || !aligned(to) ||
      !aligned(from))
    return false;
  for (auto& strides : layout.stride) {
    if (strides[last] != 1) return false;
    for (int axis = 0; axis < last; ++axis) {
      if (strides[axis] % elements != 0) return false;
      strides[axis] /= elements;
    }
  }
  layout.size[last] /= elements;
  const std::int64_t count = to.numel() / elements;
  copy_units<<<blocks_for(count, kThreads), kThreads, 0, stream_of(to)>>>(
      count, layout, reinterpret_cast<const Unit*>(from.raw()), reinterpret_cast<Unit*>(to.raw()));
  check_launch("copy");
  return true;
}

}  // namespace

void copy(const Tensor& from, const Tensor& to) {
  if (from.dtype() == to.dtype() && from.is_contiguous() && to.is_contiguous()) {
    check_cuda(cudaMemcpyAsync(to.raw(), from.raw(), to.bytes(), cudaMemcpyDeviceToDevice, stream_of(to)), "copy");
    return;
  }
  if (from.dtype() == to.dtype() && (copy_in_units<uint4>(from, to) || copy_in_units<uint2>(from, to))) return;
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
