// Layer norm and RMS norm over rows of [n, d]. Forward reads x once and writes y once; backward reads dy and x once,
// writes dx once, and keeps the sums for weight and bias in registers: a block walks over many rows, and its partial
// sums, one row of [blocks, d], are added in order by a second small kernel.

#include "core/kernels/norm.h"
#include "cuda/reduce.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kPerThread = 32;    // row elements a thread holds
constexpr int kMaxThreads = 256;  // so rows of up to 8192 elements

/// Which of the row's elements a thread holds: kWidth neighbours at a time, threads side by side.
template <int kWidth>
__device__ inline int column_of(int slot) {
  return (slot / kWidth) * blockDim.x * kWidth + threadIdx.x * kWidth + slot % kWidth;
}

template <int kWidth, class D>
__device__ inline void load_row(const D* row, int width, compute_t<D> (&values)[kPerThread]) {
#pragma unroll
  for (int slot = 0; slot < kPerThread; slot += kWidth) {
    const int column = column_of<kWidth>(slot);
    if (column < width) {
      const auto piece = *reinterpret_cast<const Vector<D, kWidth>*>(row + column);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[slot + i] = load(&piece.values[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[slot + i] = 0;
    }
  }
}

template <int kWidth, class D>
__device__ inline void store_row(D* row, int width, const compute_t<D> (&values)[kPerThread]) {
#pragma unroll
  for (int slot = 0; slot < kPerThread; slot += kWidth) {
    const int column = column_of<kWidth>(slot);
    if (column >= width) continue;
    Vector<D, kWidth> piece;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) piece.values[i] = convert<D>(values[slot + i]);
    *reinterpret_cast<Vector<D, kWidth>*>(row + column) = piece;
  }
}

/// y = (x - mean) * scale * weight + bias; kCentered is false for RMS norm, whose mean is 0.
template <bool kCentered, int kWidth, class D>
__global__ void norm_forward(const D* x, const D* weight, const D* bias, compute_t<D> epsilon, int width, D* y,
                             compute_t<D>* mean_out, compute_t<D>* scale_out) {
  using A = compute_t<D>;
  __shared__ A scratch[32];
  const std::int64_t row = blockIdx.x;
  A values[kPerThread];
  load_row<kWidth>(x + row * width, width, values);
  A mean = 0;
  if constexpr (kCentered) {
    A sum = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) sum += values[i];
    mean = block_reduce(sum, Add{}, A(0), scratch) / width;
  }
  A squares = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const A centered = column_of<kWidth>(i) < width ? values[i] - mean : A(0);
    squares += centered * centered;
  }
  const A scale = A(1) / sqrt(block_reduce(squares, Add{}, A(0), scratch) / width + epsilon);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = column_of<kWidth>(i);
    if (column >= width) continue;
    values[i] = (values[i] - mean) * scale;
    if (weight) values[i] *= load(weight + column);
    if (bias) values[i] += load(bias + column);
  }
  store_row<kWidth>(y + row * width, width, values);
  if (threadIdx.x == 0) {
    if constexpr (kCentered) mean_out[row] = mean;
    scale_out[row] = scale;
  }
}

/// With n = (x - mean) scale and g = dy weight: dx = scale (g - mean(g) - n mean(g n)), mean(g) only if centered;
/// dweight = sum of dy n, dbias = sum of dy over rows. Block b takes rows b, b + grid, ...
template <bool kCentered, int kWidth, class D>
__global__ void norm_backward(const D* dy, const D* x, const D* weight, const compute_t<D>* mean,
                              const compute_t<D>* scale, std::int64_t rows, int width, D* dx,
                              compute_t<D>* dweight_partial, compute_t<D>* dbias_partial) {
  using A = compute_t<D>;
  __shared__ A scratch[32];
  A dweight[kPerThread] = {}, dbias[kPerThread] = {};
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    A n[kPerThread], g[kPerThread];
    load_row<kWidth>(x + row * width, width, n);
    load_row<kWidth>(dy + row * width, width, g);
    const A row_scale = scale[row];
    const A row_mean = kCentered ? mean[row] : A(0);
    A sum_g = 0, sum_gn = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int column = column_of<kWidth>(i);
      if (column >= width) continue;
      n[i] = (n[i] - row_mean) * row_scale;
      dweight[i] += g[i] * n[i];
      dbias[i] += g[i];
      if (weight) g[i] *= load(weight + column);
      sum_g += g[i];
      sum_gn += g[i] * n[i];
    }
    const A mean_gn = block_reduce(sum_gn, Add{}, A(0), scratch) / width;
    const A mean_g = kCentered ? block_reduce(sum_g, Add{}, A(0), scratch) / width : A(0);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) g[i] = row_scale * (g[i] - mean_g - n[i] * mean_gn);
    store_row<kWidth>(dx + row * width, width, g);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = column_of<kWidth>(i);
    if (column >= width) continue;
    if (dweight_partial) dweight_partial[static_cast<std::int64_t>(blockIdx.x) * width + column] = dweight[i];
    if (dbias_partial) dbias_partial[static_cast<std::int64_t>(blockIdx.x) * width + column] = dbias[i];
  }
}

int threads_for(const char* op, std::int64_t width) {
  check(width <= kPerThread * kMaxThreads, op, ": rows of ", width, " elements, the CUDA kernel takes at most ",
        kPerThread * kMaxThreads);
  const std::int64_t threads = (width + kPerThread - 1) / kPerThread;
  return static_cast<int>((std::max<std::int64_t>(threads, 1) + 31) / 32 * 32);
}

/// Calls f with the widest access that the row length and the addresses allow.
template <class T, class F>
void with_width(std::int64_t width, std::initializer_list<Tensor> rows, F&& f) {
  constexpr int kWide = 16 / sizeof(T);
  bool wide = width % kWide == 0;
  for (const Tensor& t : rows) wide = wide && reinterpret_cast<std::uintptr_t>(t.raw()) % 16 == 0;
  if (wide) f(std::integral_constant<int, kWide>{});
  else f(std::integral_constant<int, 1>{});
}

template <bool kCentered>
void forward(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon, const Tensor& y,
             const Tensor& mean, const Tensor& scale) {
  const std::int64_t rows = x.size(0), width = x.size(1);
  if (x.numel() == 0) return;
  dispatch_floating(x.dtype(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    with_width<T>(width, {x, y}, [&](auto access) {
      norm_forward<kCentered, access.value><<<blocks_for(rows, 1), threads_for(op, width), 0, stream_of(x)>>>(
          pointer<T>(x), pointer<T>(weight), pointer<T>(bias), static_cast<A>(epsilon), static_cast<int>(width),
          pointer<T>(y), pointer<A>(mean), pointer<A>(scale));
    });
  });
  check_launch(op);
}

template <bool kCentered>
void backward(const char* op, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
              const Tensor& scale, const Tensor& dx, const Tensor& dweight, const Tensor& dbias) {
  const std::int64_t rows = x.size(0), width = x.size(1);
  const Context& ctx = context(x.device());
  dispatch_floating(x.dtype(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const std::int64_t blocks = std::clamp<std::int64_t>(rows, 1, 8 * ctx.multiprocessors);
    const auto partial = [&](const Tensor& sum) {
      return sum.defined() ? Tensor::empty({blocks, width}, dtype_of<A>(), x.device()) : Tensor{};
    };
    const Tensor dweight_partial = partial(dweight), dbias_partial = partial(dbias);
    with_width<T>(width, {x, dy, dx}, [&](auto access) {
      norm_backward<kCentered, access.value><<<static_cast<unsigned>(blocks), threads_for(op, width), 0, ctx.stream>>>(
          pointer<T>(dy), pointer<T>(x), pointer<T>(weight), pointer<A>(mean), pointer<A>(scale), rows,
          static_cast<int>(width), pointer<T>(dx), pointer<A>(dweight_partial), pointer<A>(dbias_partial));
    });
    check_launch(op);
    for (const auto& [sums, out] : {std::pair{dweight_partial, dweight}, std::pair{dbias_partial, dbias}}) {
      if (!out.defined() || width == 0) continue;
      sum_partials<<<blocks_for(width, 64), 64, 0, ctx.stream>>>(pointer<A>(sums), blocks, width, pointer<T>(out));
      check_launch(op);
    }
  });
}

}  // namespace

void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon, const Tensor& y,
                const Tensor& mean, const Tensor& inverse_deviation) {
  forward<true>("layer_norm", x, weight, bias, epsilon, y, mean, inverse_deviation);
}

void layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                         const Tensor& inverse_deviation, const Tensor& dx, const Tensor& dweight,
                         const Tensor& dbias) {
  backward<true>("layer_norm_backward", dy, x, weight, mean, inverse_deviation, dx, dweight, dbias);
}

void rms_norm(const Tensor& x, const Tensor& weight, double epsilon, const Tensor& y, const Tensor& inverse_rms) {
  forward<false>("rms_norm", x, weight, Tensor{}, epsilon, y, Tensor{}, inverse_rms);
}

void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                       const Tensor& dx, const Tensor& dweight) {
  backward<false>("rms_norm_backward", dy, x, weight, Tensor{}, inverse_rms, dx, dweight, Tensor{});
}

}  // namespace switchyard::cuda
