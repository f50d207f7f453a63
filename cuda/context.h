#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/device.h"

namespace switchyard::cuda {

/// What the backend keeps per GPU. All work of a device goes to one stream, so that memory given back by one op may be
/// handed to the next without waiting.
struct Context {
  int index = 0;
  cudaStream_t stream = nullptr;
  cublasLtHandle_t blas = nullptr;
  void* blas_workspace = nullptr;
  int multiprocessors = 0;
  std::size_t shared_memory_per_block = 0;  ///< the opt-in limit
  std::int64_t cache_bytes = 0;             ///< of the second-level cache
  bool hopper = false;  ///< kernels of compute capability 9.0a (wgmma) can run: the GPU has it, and the build made them
};

constexpr std::size_t kBlasWorkspaceBytes = 32u << 20;

/// Makes the device current on this thread and returns its context, created at first use. Throws Error when there is
/// no such GPU.
Context& context(Device device);

}  // namespace switchyard::cuda
