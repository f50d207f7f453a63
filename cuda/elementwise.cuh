#pragma once

#include <array>

#include "core/merged_axes.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {

/// Merged axes of N operands of one shape, as kernels take them: by value.
template <int N>
struct Layout {
  static constexpr int kMaxRank = 8;
  int rank = 0;
  std::int64_t size[kMaxRank];
  std::int64_t stride[N][kMaxRank];

  bool dense() const {
    if (rank == 0) return true;
    if (rank > 1) return false;
    for (int n = 0; n < N; ++n)
      if (stride[n][0] != 1) return false;
    return true;
  }

  /// Offsets of element `index`, counted row-major.
  __device__ void offsets(std::int64_t index, std::int64_t (&at)[N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) at[n] = 0;
    for (int axis = rank - 1; axis > 0; --axis) {
      std::int64_t i;
      if (index <= 0xffffffffu) {  // 32-bit division is several times cheaper
        const auto narrow = static_cast<std::uint32_t>(index);
        const auto divisor = static_cast<std::uint32_t>(size[axis]);
        i = narrow % divisor;
        index = narrow / divisor;
      } else {
        i = index % size[axis];
        index /= size[axis];
      }
#pragma unroll
      for (int n = 0; n < N; ++n) at[n] += i * stride[n][axis];
    }
    if (rank > 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) at[n] += index * stride[n][0];
    }
  }
};

template <int N>
Layout<N> layout_of(const std::array<const Tensor*, N>& operands) {
  const Shape& shape = operands[0]->shape();
  std::array<Shape, N> strides;
  for (int n = 0; n < N; ++n) strides[n] = operands[n]->strides();
  const auto merged = merge_axes<N>(shape, strides, false);
  Layout<N> layout;
  layout.rank = static_cast<int>(merged.sizes.rank());
  check(layout.rank <= Layout<N>::kMaxRank, "cuda: a tensor of shape ", shape, " has too many axes");
  for (int axis = 0; axis < layout.rank; ++axis) {
    layout.size[axis] = merged.sizes[axis];
    for (int n = 0; n < N; ++n) layout.stride[n][axis] = merged.strides[axis][n];
  }
  return layout;
}

/// out[i] = f(load(in[i])...) for dense operands, kWidth elements a thread with one wide access per operand.
template <int kWidth, class F, class Out, class... In>
__global__ void map_dense(F f, std::int64_t count, Out* out, const In*... in) {
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  if (first + kWidth <= count) {
    Vector<Out, kWidth> result;
    [&](Vector<In, kWidth>... operands) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) result.values[i] = convert<Out>(f(load(&operands.values[i])...));
    }(*reinterpret_cast<const Vector<In, kWidth>*>(in + first)...);
    *reinterpret_cast<Vector<Out, kWidth>*>(out + first) = result;
  } else {
    for (std::int64_t i = first; i < count; ++i) out[i] = convert<Out>(f(load(in + i)...));
  }
}

template <class F, class Out, class... In>
__global__ void map_strided(F f, std::int64_t count, Layout<1 + sizeof...(In)> layout, Out* out, const In*... in) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  std::int64_t at[1 + sizeof...(In)];
  layout.offsets(index, at);
  int n = 0;
  [&](auto... value) { out[at[0]] = convert<Out>(f(value...)); }(load(in + at[++n])...);
}

/// out = f(in...) elementwise over operands of one shape and any strides; f works in the compute types.
template <class Out, class... In, class F, class... Tensors>
void map(const char* name, F f, const Tensor& out, const Tensors&... in) {
  const std::int64_t count = out.numel();
  if (count == 0) return;
  const auto layout = layout_of<1 + sizeof...(In)>({&out, &in...});
  const cudaStream_t stream = stream_of(out);
  constexpr std::size_t kWidest = std::max({sizeof(device_t<Out>), sizeof(device_t<In>)...});
  constexpr int kWidth = static_cast<int>(16 / kWidest);
  const auto aligned = [](const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.raw()) % 16 == 0; };
  if (layout.dense() && aligned(out) && (aligned(in) && ...)) {
    map_dense<kWidth><<<blocks_for(count, kThreads * kWidth), kThreads, 0, stream>>>(f, count, pointer<Out>(out),
                                                                                     pointer<In>(in)...);
  } else {
    map_strided<<<blocks_for(count, kThreads), kThreads, 0, stream>>>(f, count, layout, pointer<Out>(out),
                                                                      pointer<In>(in)...);
  }
  check_launch(name);
}

}  // namespace switchyard::cuda
