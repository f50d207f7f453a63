#pragma once

#include "cuda/device/reduce.cuh"
#include "cuda/elementwise.cuh"

namespace switchyard::cuda {

/// out[column] = sum over rows of x[row, column], for a dense f32 or f64 [rows, columns]: the second pass of kernels
/// that leave one partial sum per block. Rows are added in order, so the result does not vary.
template <class Out, class A>
__global__ void sum_partials(const A* x, std::int64_t rows, std::int64_t columns, Out* out) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  A sum = 0;
#pragma unroll 8
  for (std::int64_t row = 0; row < rows; ++row) sum += x[row * columns + column];
  out[column] = convert<Out>(sum);
}

}  // namespace switchyard::cuda
