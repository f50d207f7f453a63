#include "core/kernels/norm.h"

#include <cmath>
#include <optional>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/kernels/elementwise.h"
#include "core/parallel.h"

namespace switchyard::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;

template <class F>
void dispatch_compute(DType dtype, F&& f) {
  if (dtype == DType::f64) f(TypeTag<double>{});
  else f(TypeTag<float>{});
}

std::int64_t row_grain(std::int64_t d) { return std::max<std::int64_t>(1, kGrain / d); }

/// A parameter [d] in the compute type; `missing` throughout where it is undefined.
template <class A>
std::vector<A> parameter(const Tensor& tensor, std::int64_t d, A missing) {
  std::vector<A> values(static_cast<std::size_t>(d), missing);
  if (tensor.defined()) {
    Reader<A> reader(Operand{tensor, 1, d});
    const A* from = reader.read(0, d);
    std::copy(from, from + d, values.begin());
  }
  return values;
}

/// What is normalised: x, or x + addend, which is then left in `sum`.
const Tensor& summed(const Tensor& x, const Tensor& addend, const Tensor& sum) {
  if (!addend.defined()) return x;
  binary(ops::Binary::add, x, addend, sum);
  return sum;
}

/// Rows of a tensor [n, d] in the compute type; rows of zeros where it is undefined.
template <class A>
class OptionalRows {
 public:
  OptionalRows(const Tensor& tensor, std::int64_t d) : d_(d) {
    if (tensor.defined()) reader_.emplace(Operand{tensor, 1, d});
    else zeros_.resize(static_cast<std::size_t>(d));
  }
  const A* read(std::int64_t row) { return reader_ ? reader_->read(row * d_, d_) : zeros_.data(); }

 private:
  std::int64_t d_;
  std::optional<Reader<A>> reader_;
  std::vector<A> zeros_;
};

/// Gradients of parameters [count, d], summed over rows in an order that does not depend on the number of threads:
/// each fixed block of rows into a row of its own, then those.
template <class A>
class RowBlockSums {
 public:
  RowBlockSums(std::int64_t rows, std::int64_t count, std::int64_t d)
      : rows_(rows), block_(std::max<std::int64_t>(32, (rows + 63) / 64)), count_(count), d_(d) {
    sums_.resize(static_cast<std::size_t>(blocks() * count * d));
  }

  /// Calls f(first_row, last_row, sums) for each block, on all threads; sums is [count, d], zero at first.
  template <class F>
  void parallel(F&& f) {
    parallel_for(0, blocks(), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b)
        f(b * block_, std::min(rows_, (b + 1) * block_), sums_.data() + b * count_ * d_);
    });
  }

  /// Writes parameter `index`'s gradient where it is wanted.
  void store(std::int64_t index, const Tensor& gradient) {
    if (!gradient.defined()) return;
    std::vector<A> total(static_cast<std::size_t>(d_));
    for (std::int64_t b = 0; b < blocks(); ++b) {
      const A* from = sums_.data() + (b * count_ + index) * d_;
      for (std::int64_t i = 0; i < d_; ++i) total[i] += from[i];
    }
    convert_function(dtype_of<A>(), gradient.dtype())(reinterpret_cast<const std::byte*>(total.data()), 1,
                                                      gradient.raw(), 1, d_);
  }

 private:
  std::int64_t blocks() const { return (rows_ + block_ - 1) / block_; }

  std::int64_t rows_, block_, count_, d_;
  std::vector<A> sums_;
};

}  // namespace

void layer_norm(const Tensor& x, const Tensor& addend, const Tensor& weight, const Tensor& bias, double epsilon,
                const Tensor& sum, const Tensor& y, const Tensor& mean, const Tensor& inverse_deviation) {
  const std::int64_t d = x.size(1);
  const Tensor& input = summed(x, addend, sum);
  dispatch_compute(x.dtype(), [&]<class A>(TypeTag<A>) {
    const std::vector<A> scale = parameter(weight, d, A(1)), shift = parameter(bias, d, A(0));
    A* const means = mean.data<A>();
    A* const inverses = inverse_deviation.data<A>();
    parallel_for(0, x.size(0), row_grain(d), [&](std::int64_t begin, std::int64_t end) {
      Reader<A> reader(Operand{input, 1, d});
      Writer<A> writer(Operand{y, 1, d});
      for (std::int64_t row = begin; row < end; ++row) {
        const A* from = reader.read(row * d, d);
        A* to = writer.target(row * d);
        const A m = lane_sum<A>(d, [=](std::int64_t i) { return from[i]; }) / static_cast<A>(d);
        const A variance =
            lane_sum<A>(d, [=](std::int64_t i) { return (from[i] - m) * (from[i] - m); }) / static_cast<A>(d);
        const A inverse = A(1) / std::sqrt(variance + static_cast<A>(epsilon));
#pragma omp simd
        for (std::int64_t i = 0; i < d; ++i) to[i] = (from[i] - m) * inverse * scale[i] + shift[i];
        writer.flush(row * d, d);
        means[row] = m;
        inverses[row] = inverse;
      }
    });
  });
}

// With n = (x - mean) inverse and g = dy weight: dx = dsum + inverse (g - mean(g) - n mean(g n)), dweight = sum dy n.
void layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                         const Tensor& inverse_deviation, const Tensor& dsum, const Tensor& dx, const Tensor& dweight,
                         const Tensor& dbias) {
  const std::int64_t d = x.size(1);
  dispatch_compute(x.dtype(), [&]<class A>(TypeTag<A>) {
    const std::vector<A> scale = parameter(weight, d, A(1));
    const A* const means = mean.data<A>();
    const A* const inverses = inverse_deviation.data<A>();
    RowBlockSums<A> sums(x.size(0), 2, d);
    sums.parallel([&](std::int64_t begin, std::int64_t end, A* dweight_sum) {
      A* const dbias_sum = dweight_sum + d;
      Reader<A> x_reader(Operand{x, 1, d}), dy_reader(Operand{dy, 1, d});
      OptionalRows<A> dsum_rows(dsum, d);
      Writer<A> writer(Operand{dx, 1, d});
      std::vector<A> normal(static_cast<std::size_t>(d)), g(static_cast<std::size_t>(d));
      for (std::int64_t row = begin; row < end; ++row) {
        const A* from = x_reader.read(row * d, d);
        const A* upstream = dy_reader.read(row * d, d);
        const A* passing = dsum_rows.read(row);
        A* to = writer.target(row * d);
        const A m = means[row], inverse = inverses[row];
#pragma omp simd
        for (std::int64_t i = 0; i < d; ++i) {
          normal[i] = (from[i] - m) * inverse;
          g[i] = upstream[i] * scale[i];
          dweight_sum[i] += upstream[i] * normal[i];
          dbias_sum[i] += upstream[i];
        }
        const A mean_g = lane_sum<A>(d, [&](std::int64_t i) { return g[i]; }) / static_cast<A>(d);
        const A mean_gn = lane_sum<A>(d, [&](std::int64_t i) { return g[i] * normal[i]; }) / static_cast<A>(d);
#pragma omp simd
        for (std::int64_t i = 0; i < d; ++i) to[i] = passing[i] + inverse * (g[i] - mean_g - normal[i] * mean_gn);
        writer.flush(row * d, d);
      }
    });
    sums.store(0, dweight);
    sums.store(1, dbias);
  });
}

void rms_norm(const Tensor& x, const Tensor& addend, const Tensor& weight, double epsilon, const Tensor& sum,
              const Tensor& y, const Tensor& inverse_rms) {
  const std::int64_t d = x.size(1);
  const Tensor& input = summed(x, addend, sum);
  dispatch_compute(x.dtype(), [&]<class A>(TypeTag<A>) {
    const std::vector<A> scale = parameter(weight, d, A(1));
    A* const inverses = inverse_rms.data<A>();
    parallel_for(0, x.size(0), row_grain(d), [&](std::int64_t begin, std::int64_t end) {
      Reader<A> reader(Operand{input, 1, d});
      Writer<A> writer(Operand{y, 1, d});
      for (std::int64_t row = begin; row < end; ++row) {
        const A* from = reader.read(row * d, d);
        A* to = writer.target(row * d);
        const A square = lane_sum<A>(d, [=](std::int64_t i) { return from[i] * from[i]; }) / static_cast<A>(d);
        const A inverse = A(1) / std::sqrt(square + static_cast<A>(epsilon));
#pragma omp simd
        for (std::int64_t i = 0; i < d; ++i) to[i] = from[i] * inverse * scale[i];
        writer.flush(row * d, d);
        inverses[row] = inverse;
      }
    });
  });
}

// With n = x inverse and g = dy weight: dx = dsum + inverse (g - n mean(g n)), dweight = sum dy n.
void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                       const Tensor& dsum, const Tensor& dx, const Tensor& dweight) {
  const std::int64_t d = x.size(1);
  dispatch_compute(x.dtype(), [&]<class A>(TypeTag<A>) {
    const std::vector<A> scale = parameter(weight, d, A(1));
    const A* const inverses = inverse_rms.data<A>();
    RowBlockSums<A> sums(x.size(0), 1, d);
    sums.parallel([&](std::int64_t begin, std::int64_t end, A* dweight_sum) {
      Reader<A> x_reader(Operand{x, 1, d}), dy_reader(Operand{dy, 1, d});
      OptionalRows<A> dsum_rows(dsum, d);
      Writer<A> writer(Operand{dx, 1, d});
      std::vector<A> normal(static_cast<std::size_t>(d)), g(static_cast<std::size_t>(d));
      for (std::int64_t row = begin; row < end; ++row) {
        const A* from = x_reader.read(row * d, d);
        const A* upstream = dy_reader.read(row * d, d);
        const A* passing = dsum_rows.read(row);
        A* to = writer.target(row * d);
        const A inverse = inverses[row];
#pragma omp simd
        for (std::int64_t i = 0; i < d; ++i) {
          normal[i] = from[i] * inverse;
          g[i] = upstream[i] * scale[i];
          dweight_sum[i] += upstream[i] * normal[i];
        }
        const A mean_gn = lane_sum<A>(d, [&](std::int64_t i) { return g[i] * normal[i]; }) / static_cast<A>(d);
#pragma omp simd
        for (std::int64_t i = 0; i < d; ++i) to[i] = passing[i] + inverse * (g[i] - normal[i] * mean_gn);
        writer.flush(row * d, d);
      }
    });
    sums.store(0, dweight);
  });
}

}  // namespace switchyard::cpu
