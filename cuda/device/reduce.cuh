#pragma once

#include <cuda_runtime.h>

namespace switchyard::cuda {

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;  // NaN wins, so that it is seen
  }
};

/// Combines a value over the 32 lanes of a warp, in a fixed order; every lane gets the result.
template <class T, class Op>
__device__ inline T warp_reduce(T value, Op op) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value = op(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

/// Sum of the values of this lane and all lanes below it.
template <class T>
__device__ inline T warp_running_sum(T value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const T other = __shfl_up_sync(0xffffffffu, value, distance);
    if (lane >= distance) value += other;
  }
  return value;
}

/// Combines a value over a block of at most 1024 threads, a multiple of 32; every thread gets the result. `scratch` has
/// room for 32 values and may be used again after the call.
template <class T, class Op>
__device__ inline T block_reduce(T value, Op op, T identity, T* scratch) {
  value = warp_reduce(value, op);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_reduce(lane < warps ? scratch[lane] : identity, op);
  __syncthreads();
  return value;
}

}  // namespace switchyard::cuda
