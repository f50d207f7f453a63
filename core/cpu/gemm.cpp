#include "core/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>

#include "core/parallel.h"
#include "core/profiler.h"

namespace switchyard::cpu {
namespace {

// A bf16 product is cut into blocks whose float copies (4 MiB in all) stay in the cache while the library reads them;
// converting is then about one operation in 500.
constexpr std::int64_t kBlockRows = 512, kBlockColumns = 512, kBlockDepth = 512;
constexpr std::int64_t kConvertGrain = 16384;  // elements worth a thread
// From this many multiply-adds on, OpenBLAS copies both operands before it multiplies them, whatever the processor.
constexpr std::int64_t kCopiedProduct = 1000000;

struct BlasOperand {
  CBLAS_TRANSPOSE transpose;
  int leading;
};

int blas_int(std::int64_t size) {
  check(size <= std::numeric_limits<int>::max(), "matmul: a size or stride of ", size, " is beyond the BLAS library's ",
        std::numeric_limits<int>::max());
  return static_cast<int>(size);
}

template <class T>
BlasOperand blas_operand(const MatrixView<T>& x, std::int64_t rows, std::int64_t columns) {
  if (x.column_stride == 1 && (rows == 1 || x.row_stride >= columns))
    return {CblasNoTrans, blas_int(rows == 1 ? columns : x.row_stride)};
  check((rows == 1 || x.row_stride == 1) && x.column_stride >= rows, "matmul: strides ", x.row_stride, " and ",
        x.column_stride, " of a ", rows, " x ", columns, " matrix: one must be 1, the other span that axis");
  return {CblasTrans, blas_int(x.column_stride)};
}

/// The product of one row, which is that of b, transposed, and a vector: reads b once.
template <class T>
void blas_row(std::int64_t n, std::int64_t k, T alpha, MatrixView<T> a, MatrixView<T> b, T beta, T* c) {
  const BlasOperand on_b = blas_operand(b, k, n);
  const bool transposed = on_b.transpose == CblasTrans;  // b lies in memory as [n, k]
  const int rows = blas_int(transposed ? n : k), columns = blas_int(transposed ? k : n);
  const CBLAS_TRANSPOSE transpose = transposed ? CblasNoTrans : CblasTrans;
  const int step = k == 1 ? 1 : blas_int(a.column_stride);
  if (beta == T(0)) std::fill(c, c + n, T(0));  // libraries differ in whether 0 times an old NaN is 0
  if constexpr (std::is_same_v<T, double>) {
    cblas_dgemv(CblasRowMajor, transpose, rows, columns, alpha, b.data, on_b.leading, a.data, step, beta, c, 1);
  } else {
    cblas_sgemv(CblasRowMajor, transpose, rows, columns, alpha, b.data, on_b.leading, a.data, step, beta, c, 1);
  }
}

template <class T>
void blas_gemm(std::int64_t m, std::int64_t n, std::int64_t k, T alpha, MatrixView<T> a, MatrixView<T> b, T beta, T* c,
               std::int64_t c_row_stride) {
  if (m == 1 && n * k > kCopiedProduct) return blas_row(n, k, alpha, a, b, beta, c);
  const BlasOperand on_a = blas_operand(a, m, k), on_b = blas_operand(b, k, n);
  const int ldc = blas_int(std::max(c_row_stride, n));
  const int rows = blas_int(m), columns = blas_int(n), depth = blas_int(k);
  if constexpr (std::is_same_v<T, double>) {
    cblas_dgemm(CblasRowMajor, on_a.transpose, on_b.transpose, rows, columns, depth, alpha, a.data, on_a.leading,
                b.data, on_b.leading, beta, c, ldc);
  } else {
    cblas_sgemm(CblasRowMajor, on_a.transpose, on_b.transpose, rows, columns, depth, alpha, a.data, on_a.leading,
                b.data, on_b.leading, beta, c, ldc);
  }
}

template <class From, class To>
void convert_rows(std::int64_t rows, std::int64_t columns, const From* from, std::int64_t from_stride, To* to,
                  std::int64_t to_stride) {
  parallel_for(0, rows, std::max<std::int64_t>(1, kConvertGrain / columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      for (std::int64_t j = 0; j < columns; ++j)
        to[i * to_stride + j] = static_cast<To>(static_cast<float>(from[i * from_stride + j]));
  });
}

// Copies a block of x into `panel` as float, in the order it lies in memory.
MatrixView<float> float_panel(const MatrixView<bfloat16>& x, std::int64_t row, std::int64_t rows, std::int64_t column,
                              std::int64_t columns, float* panel) {
  const bfloat16* from = x.data + row * x.row_stride + column * x.column_stride;
  if (x.column_stride == 1) {
    convert_rows(rows, columns, from, x.row_stride, panel, columns);
    return {panel, columns, 1};
  }
  convert_rows(columns, rows, from, x.column_stride, panel, rows);
  return {panel, 1, rows};
}

template <class C>
void bf16_gemm(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, MatrixView<bfloat16> a,
               MatrixView<bfloat16> b, float beta, C* c, std::int64_t c_row_stride) {
  constexpr bool kRoundAtEnd = std::is_same_v<C, bfloat16>;
  const std::int64_t most_rows = std::min(m, kBlockRows), most_columns = std::min(n, kBlockColumns),
                     most_depth = std::min(k, kBlockDepth);
  const auto a_panel = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(most_rows * most_depth));
  const auto b_panel = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(most_depth * most_columns));
  const auto c_panel =
      std::make_unique_for_overwrite<float[]>(kRoundAtEnd ? static_cast<std::size_t>(most_rows * most_columns) : 0);
  for (std::int64_t column = 0; column < n; column += kBlockColumns) {
    const std::int64_t columns = std::min(kBlockColumns, n - column);
    for (std::int64_t row = 0; row < m; row += kBlockRows) {
      const std::int64_t rows = std::min(kBlockRows, m - row);
      C* block = c + row * c_row_stride + column;
      float* sums = c_panel.get();
      std::int64_t sums_stride = columns;
      if constexpr (kRoundAtEnd) {
        if (beta != 0) convert_rows(rows, columns, block, c_row_stride, sums, sums_stride);
      } else {
        sums = block;
        sums_stride = c_row_stride;
      }
      for (std::int64_t from = 0; from < k; from += kBlockDepth) {
        const std::int64_t depth = std::min(kBlockDepth, k - from);
        blas_gemm<float>(rows, columns, depth, alpha, float_panel(a, row, rows, from, depth, a_panel.get()),
                         float_panel(b, from, depth, column, columns, b_panel.get()), from == 0 ? beta : 1.0f, sums,
                         sums_stride);
      }
      if constexpr (kRoundAtEnd) convert_rows(rows, columns, sums, sums_stride, block, c_row_stride);
    }
  }
}

template <class C>
void scale_rows(std::int64_t m, std::int64_t n, double beta, C* c, std::int64_t c_row_stride) {
  using Compute = accumulate_t<C>;
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      C& value = c[i * c_row_stride + j];
      value = beta == 0 ? C(0) : static_cast<C>(static_cast<Compute>(beta) * static_cast<Compute>(value));
    }
}

}  // namespace

template <class T, class C>
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, double alpha, MatrixView<T> a, MatrixView<T> b, double beta,
          C* c, std::int64_t c_row_stride) {
  if (m == 0 || n == 0) return;
  if (k == 0) return scale_rows(m, n, beta, c, c_row_stride);
  if (k == 1) a.column_stride = 1;  // an axis of size 1 is never stepped along
  if (n == 1) b.column_stride = 1;
  const ProfileScope scope("gemm", 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k));
  if constexpr (std::is_same_v<T, bfloat16>) {
    bf16_gemm(m, n, k, static_cast<float>(alpha), a, b, static_cast<float>(beta), c, c_row_stride);
  } else {
    blas_gemm<T>(m, n, k, static_cast<T>(alpha), a, b, static_cast<T>(beta), c, c_row_stride);
  }
}

template void gemm(std::int64_t, std::int64_t, std::int64_t, double, MatrixView<float>, MatrixView<float>, double,
                   float*, std::int64_t);
template void gemm(std::int64_t, std::int64_t, std::int64_t, double, MatrixView<double>, MatrixView<double>, double,
                   double*, std::int64_t);
template void gemm(std::int64_t, std::int64_t, std::int64_t, double, MatrixView<bfloat16>, MatrixView<bfloat16>, double,
                   bfloat16*, std::int64_t);
template void gemm(std::int64_t, std::int64_t, std::int64_t, double, MatrixView<bfloat16>, MatrixView<bfloat16>, double,
                   float*, std::int64_t);

}  // namespace switchyard::cpu
