#include "core/kernels/matmul.h"

#include <algorithm>

#include "core/cpu/gemm.h"
#include "core/kernels/elementwise.h"
#include "core/parallel.h"

namespace switchyard::cpu {
namespace {

constexpr double kSmallProduct = 4e6;  // FLOPs below which one product is not worth all threads
constexpr double kGrain = 2e5;         // FLOPs worth a thread

template <class T, class C>
void batched_gemm(const Tensor& a, const Tensor& b, const Tensor& out, double alpha, double beta) {
  const std::int64_t batch = a.size(0), m = a.size(1), k = a.size(2), n = b.size(2);
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const auto multiply = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      gemm<T, C>(m, n, k, alpha, {a.data<T>() + i * a.stride(0), a.stride(1), a.stride(2)},
                 {b.data<T>() + i * b.stride(0), b.stride(1), b.stride(2)}, beta, out.data<C>() + i * out.stride(0),
                 out.stride(1));
  };
  if (flops < kSmallProduct || batch >= 2 * omp_get_max_threads()) {
    parallel_for(0, batch, static_cast<std::int64_t>(kGrain / std::max(flops, 1.0)), multiply);
  } else {
    multiply(0, batch);
  }
}

template <class T, class C>
void linear_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out) {
  const std::int64_t n = x.size(0), k = x.size(1), m = w.size(0);
  C* y = out.data<C>();
  if (bias.defined()) {
    const T* row = bias.data<T>();
    parallel_for(0, n, 1 + 32768 / m, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        for (std::int64_t j = 0; j < m; ++j) y[i * m + j] = static_cast<C>(row[j]);
    });
  }
  gemm<T, C>(n, m, k, 1, {x.data<T>(), x.stride(0), x.stride(1)}, {w.data<T>(), w.stride(1), w.stride(0)},
             bias.defined() ? 1 : 0, y, m);
}

}  // namespace

void matmul(const Tensor& a, const Tensor& b, const Tensor& out, double alpha, double beta) {
  dispatch_floating(a.dtype(), "matmul", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (out.dtype() == a.dtype()) {
      batched_gemm<T, T>(a, b, out, alpha, beta);
    } else {
      batched_gemm<T, accumulate_t<T>>(a, b, out, alpha, beta);
    }
  });
}

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, ops::Activation activation, const Tensor& out) {
  dispatch_floating(x.dtype(), "linear", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (out.dtype() == x.dtype()) {
      linear_rows<T, T>(x, w, bias, out);
    } else {
      linear_rows<T, accumulate_t<T>>(x, w, bias, out);
    }
  });
  if (activation != ops::Activation::identity) unary(activation, out, out);
}

}  // namespace switchyard::cpu
