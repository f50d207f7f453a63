#pragma once

#include "cuda/check.h"
#include "cuda/context.h"

namespace switchyard::cuda {

/// Launches a kernel whose blocks may begin while the kernel before it still runs, where the GPU can do that: launching
/// then hides behind running, which is worth it for kernels of a few microseconds. The kernel must call
/// wait_for_previous() before it reads or writes anything in the GPU's memory; what it will read it may prefetch().
template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes, const Context& ctx,
                  const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = ctx.stream;
  config.attrs = &early;
  config.numAttrs = ctx.hopper ? 1 : 0;  // device code for older GPUs could not wait
  check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "cudaLaunchKernelEx");
}

/// Lets a kernel that is launched early begin as soon as all blocks of this one have called it or ended.
__device__ inline void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Has `count` elements fetched into the second-level cache, where all is as it was last written: unlike a read, this
/// may come before what writes them. `from` and the number of bytes must be multiples of 16.
template <class D>
__device__ inline void prefetch(const D* from, int count) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(count * static_cast<int>(sizeof(D)))
               : "memory");
#endif
}

/// Waits until the kernels before this one have ended and all that they wrote can be read.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace switchyard::cuda
