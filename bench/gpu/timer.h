#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "cuda/check.h"
#include "cuda/context.h"

namespace switchyard::bench {

/// Median time of one call in milliseconds, by CUDA events, after warm-up calls.
inline double median_ms(const std::function<void()>& call, int warm_up = 3, int repeats = 15) {
  const cudaStream_t stream = cuda::context(Device::cuda()).stream;
  for (int i = 0; i < warm_up; ++i) call();
  cudaEvent_t begin, end;
  cuda::check_cuda(cudaEventCreate(&begin), "cudaEventCreate");
  cuda::check_cuda(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times(static_cast<std::size_t>(repeats));
  for (float& time : times) {
    cuda::check_cuda(cudaEventRecord(begin, stream), "cudaEventRecord");
    call();
    cuda::check_cuda(cudaEventRecord(end, stream), "cudaEventRecord");
    cuda::check_cuda(cudaEventSynchronize(end), "cudaEventSynchronize");
    cuda::check_cuda(cudaEventElapsedTime(&time, begin, end), "cudaEventElapsedTime");
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<std::size_t>(repeats / 2)];
}

}  // namespace switchyard::bench
