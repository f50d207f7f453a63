#pragma once

#include <algorithm>
#include <cstdint>

#include "core/tensor.h"
#include "cuda/check.h"
#include "cuda/context.h"
#include "cuda/device/convert.cuh"

namespace switchyard::cuda {

constexpr int kThreads = 256;

/// Blocks that cover `work` units, `per_block` each.
inline unsigned blocks_for(std::int64_t work, std::int64_t per_block) {
  const std::int64_t blocks = (work + per_block - 1) / per_block;
  check(blocks <= 0x7fffffff, "cuda: a kernel over ", work, " units needs more blocks than a grid holds");
  return static_cast<unsigned>(blocks);
}

/// Throws if the launch just made was refused.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

inline cudaStream_t stream_of(const Tensor& tensor) { return context(tensor.device()).stream; }

/// First element, as the type kernels use; null for an undefined tensor.
template <class T>
device_t<T>* pointer(const Tensor& tensor) {
  return tensor.defined() ? reinterpret_cast<device_t<T>*>(tensor.data<T>()) : nullptr;
}

/// Lets a kernel use more than 48 KiB of dynamic shared memory.
template <class Kernel>
void allow_shared_memory(Kernel kernel, std::size_t bytes) {
  if (bytes > 48u << 10)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
               "cudaFuncSetAttribute");
}

}  // namespace switchyard::cuda
