#include "core/kernels/softmax.h"

#include <limits>

#include "core/cpu/blocks.h"
#include "core/cpu/vector_math.h"
#include "core/parallel.h"

namespace switchyard::cpu {
namespace {

constexpr std::int64_t kGrain = 8192;

/// Calls f(TypeTag<A>{}, first_row, last_row) with the compute type, on all threads.
template <class F>
void for_rows(const Tensor& x, F&& f) {
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / x.size(1));
  parallel_for(0, x.size(0), grain, [&](std::int64_t begin, std::int64_t end) {
    if (x.dtype() == DType::f64) f(TypeTag<double>{}, begin, end);
    else f(TypeTag<float>{}, begin, end);
  });
}

template <class A>
A row_max(const A* x, std::int64_t d) {
  return lane_max(x, d, -std::numeric_limits<A>::infinity());
}

/// What is subtracted before exp: the maximum, or 0 where that is -inf and the difference would be NaN.
template <class A>
A shift_of(A largest) {
  return largest == -std::numeric_limits<A>::infinity() ? A(0) : largest;
}

/// f(row of x, row of y) makes each row of y.
template <class F>
void map_rows(const Tensor& x, const Tensor& y, const F& f) {
  const std::int64_t d = x.size(1);
  for_rows(x, [&]<class A>(TypeTag<A>, std::int64_t begin, std::int64_t end) {
    Reader<A> reader(Operand{x, 1, d});
    Writer<A> writer(Operand{y, 1, d});
    for (std::int64_t row = begin; row < end; ++row) {
      f(reader.read(row * d, d), writer.target(row * d));
      writer.flush(row * d, d);
    }
  });
}

/// f(row of dy, row of y, row of dx) makes each row of dx.
template <class F>
void map_row_gradients(const Tensor& dy, const Tensor& y, const Tensor& dx, const F& f) {
  const std::int64_t d = y.size(1);
  for_rows(y, [&]<class A>(TypeTag<A>, std::int64_t begin, std::int64_t end) {
    Reader<A> dy_reader(Operand{dy, 1, d}), y_reader(Operand{y, 1, d});
    Writer<A> writer(Operand{dx, 1, d});
    for (std::int64_t row = begin; row < end; ++row) {
      f(dy_reader.read(row * d, d), y_reader.read(row * d, d), writer.target(row * d));
      writer.flush(row * d, d);
    }
  });
}

}  // namespace

void softmax(const Tensor& x, const Tensor& y) {
  map_rows(x, y, [d = x.size(1)]<class A>(const A* from, A* to) {
    const A shift = shift_of(row_max(from, d));
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) to[i] = fast_exp(from[i] - shift);
    const A sum = lane_sum<A>(d, [to](std::int64_t i) { return to[i]; });
    const A factor = sum == 0 ? A(0) : A(1) / sum;
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) to[i] *= factor;
  });
}

void softmax_backward(const Tensor& dy, const Tensor& y, const Tensor& dx) {
  map_row_gradients(dy, y, dx, [d = y.size(1)]<class A>(const A* upstream, const A* p, A* to) {
    const A mean = lane_sum<A>(d, [=](std::int64_t i) { return upstream[i] * p[i]; });
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) to[i] = p[i] * (upstream[i] - mean);
  });
}

void log_softmax(const Tensor& x, const Tensor& y) {
  map_rows(x, y, [d = x.size(1)]<class A>(const A* from, A* to) {
    const A largest = row_max(from, d), shift = shift_of(largest);
    const A sum = lane_sum<A>(d, [=](std::int64_t i) { return fast_exp(from[i] - shift); });
    // Of a row that is -inf throughout every probability is 0, as in softmax.
    const A log_sum = sum == 0 ? A(0) : std::log(sum);
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) to[i] = (from[i] - shift) - log_sum;
  });
}

void log_softmax_backward(const Tensor& dy, const Tensor& y, const Tensor& dx) {
  map_row_gradients(dy, y, dx, [d = y.size(1)]<class A>(const A* upstream, const A* log_p, A* to) {
    const A sum = lane_sum<A>(d, [=](std::int64_t i) { return upstream[i]; });
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) to[i] = upstream[i] - fast_exp(log_p[i]) * sum;
  });
}

void logsumexp(const Tensor& x, const Tensor& y) {
  const std::int64_t d = x.size(1);
  for_rows(x, [&]<class A>(TypeTag<A>, std::int64_t begin, std::int64_t end) {
    Reader<A> reader(Operand{x, 1, d});
    Writer<A> writer(Operand{y, 1, end - begin});
    A* to = writer.target(begin);
    for (std::int64_t row = begin; row < end; ++row) {
      const A* from = reader.read(row * d, d);
      const A largest = row_max(from, d);
      const A shift = std::isfinite(largest) ? largest : A(0);
      to[row - begin] = shift + std::log(lane_sum<A>(d, [=](std::int64_t i) { return fast_exp(from[i] - shift); }));
    }
    writer.flush(begin, end - begin);
  });
}

}  // namespace switchyard::cpu
