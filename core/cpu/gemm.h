#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace switchyard::cpu {

/// A matrix operand as it lies in memory: element (i, j) is data[i * row_stride + j * column_stride]. One stride is 1
/// and the other at least the size of that axis; along an axis of size 1 it may be anything.
template <class T>
struct MatrixView {
  const T* data;
  std::int64_t row_stride;
  std::int64_t column_stride = 1;

  MatrixView transposed() const { return {data, column_stride, row_stride}; }
};

/// c = alpha a b + beta c with a [m, k], b [k, n] and c [m, n] with rows `c_row_stride` apart; accumulated in float
/// (double for double). With beta = 0 the old c is not read; k = 0 gives beta c. float and double go to the BLAS
/// library as they are, bfloat16 is converted panel by panel and rounded once, at the end. Uses all threads, or just
/// the caller's when called from inside a parallel loop.
/// T, C: float, float; double, double; bfloat16, bfloat16; bfloat16, float.
template <class T, class C>
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, double alpha, MatrixView<T> a, MatrixView<T> b, double beta,
          C* c, std::int64_t c_row_stride);

}  // namespace switchyard::cpu
