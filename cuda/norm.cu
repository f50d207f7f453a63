// Layer norm and RMS norm over rows of [n, d], with the addition that stands before them in a residual stream. Forward
// reads x (and the addend) once and writes y (and the sum) once. Backward reads dy and x (and the sum's gradient) once
// and writes dx once; it keeps the sums for weight and bias in registers: a block walks over many rows and leaves one
// row of partial sums, which a second small kernel adds in order.

#include "core/kernels/copy.h"
#include "core/kernels/norm.h"
#include "cuda/device/reduce.cuh"
#include "cuda/launch_early.cuh"
#include "cuda/norm.cuh"

namespace switchyard::cuda {
namespace {

/// Adds up kCount values over the block, in a fixed order; every thread gets the sums. One barrier: `scratch` may be
/// written again only after another one, so calls take turns with two.
template <int kCount, class A>
__device__ inline void block_sums(A (&values)[kCount], A (&scratch)[kCount][kMaxWarps]) {
#pragma unroll
  for (A& value : values) value = warp_reduce(value, Add{});
  const int warps = blockDim.x / 32;
  if (warps == 1) return;
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int i = 0; i < kCount; ++i) scratch[i][threadIdx.x / 32] = values[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = 0;
    for (int warp = 0; warp < warps; ++warp) values[i] += scratch[i][warp];
  }
}

template <class D>
struct ForwardRows {
  const D *x, *addend, *weight, *bias;  // null where there is none, but for x
  D *sum, *y;
  compute_t<D>*mean, *scale;
  compute_t<D> epsilon, inverse_width;
  std::int64_t rows;
  int width;
};

/// y = (s - mean) * scale * weight + bias with s = x + addend; kCentered is false for RMS norm, whose mean is 0. A
/// block takes rows b, b + grid, ... and has the next ones fetched meanwhile.
template <bool kCentered, class S, class D>
__global__ void __launch_bounds__(kMaxThreads) norm_forward(ForwardRows<D> in) {
  using A = compute_t<D>;
  let_next_begin();  // in decoding, a linear map of one row
  __shared__ A scratch[2][1][kMaxWarps];
  extern __shared__ __align__(16) char memory[];
  const RowsAhead<S, D, 2> ahead(memory);
  A weight[kPerThread], bias[kPerThread];
  read_parameter<S>(in.weight, in.width, A(1), weight);
  read_parameter<S>(in.bias, in.width, A(0), bias);
  const auto fetch = [&](std::int64_t row, int stage) {
    ahead.fetch(stage, 0, in.x + row * in.width, in.width);
    if (in.addend) ahead.fetch(stage, 1, in.addend + row * in.width, in.width);
  };
  ahead.walk(in.rows, fetch, [&](std::int64_t row, int stage) {
    Share<S, D> x = ahead.row(stage, 0);
    if (in.addend) {
      const Share<S, D> addend = ahead.row(stage, 1);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) x.set(i, x[i] + addend[i]);
      x.write(in.sum + row * in.width, in.width);
    }
    A mean[1] = {}, squares[1] = {};
    if constexpr (kCentered) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) mean[0] += x[i];
      block_sums(mean, scratch[0]);
      mean[0] *= in.inverse_width;
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const A centered = S::column(i) < in.width ? x[i] - mean[0] : A(0);
      squares[0] += centered * centered;
    }
    block_sums(squares, scratch[1]);
    if constexpr (!kCentered) __syncthreads();  // before scratch[1] is written again
    const A scale = rsqrt(squares[0] * in.inverse_width + in.epsilon);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) x.set(i, (x[i] - mean[0]) * scale * weight[i] + bias[i]);
    x.write(in.y + row * in.width, in.width);
    if (threadIdx.x != 0) return;
    if constexpr (kCentered) in.mean[row] = mean[0];
    in.scale[row] = scale;
  });
}

template <class D>
struct BackwardRows {
  const D *dy, *x, *dsum, *weight;  // null where there is none, but for dy and x
  const compute_t<D>*mean, *scale;
  D* dx;
  compute_t<D>*dweight, *dbias;  // partial sums [blocks, width]; null where not wanted
  compute_t<D> inverse_width;
  std::int64_t rows;
  int width;
};

/// With n = (x - mean) scale and g = dy weight: dx = dsum + scale (g - mean(g) - n mean(g n)), mean(g) only if
/// centered; dweight = sum of dy n, dbias = sum of dy over rows, which block b takes as in the forward pass.
template <bool kCentered, class S, class D>
__global__ void __launch_bounds__(kMaxThreads) norm_backward(BackwardRows<D> in) {
  using A = compute_t<D>;
  __shared__ A scratch[2][2][kMaxWarps];
  A dweight[kPerThread] = {}, dbias[kPerThread] = {};
  extern __shared__ __align__(16) char memory[];
  const RowsAhead<S, D, 3> ahead(memory);
  A weight[kPerThread];
  read_parameter<S>(in.weight, in.width, A(1), weight);
  const auto fetch = [&](std::int64_t row, int stage) {
    ahead.fetch(stage, 0, in.x + row * in.width, in.width);
    ahead.fetch(stage, 1, in.dy + row * in.width, in.width);
    if (in.dsum) ahead.fetch(stage, 2, in.dsum + row * in.width, in.width);
    ahead.fetch_number(stage, 0, in.scale + row);
    if constexpr (kCentered) ahead.fetch_number(stage, 1, in.mean + row);
  };
  int turn = 0;
  ahead.walk(in.rows, fetch, [&](std::int64_t row, int stage) {
    const Share<S, D> x = ahead.row(stage, 0), dy = ahead.row(stage, 1);
    Share<S, D> dx{};
    if (in.dsum) dx = ahead.row(stage, 2);
    const A scale = ahead.number(stage, 0), mean = kCentered ? ahead.number(stage, 1) : A(0);
    A n[kPerThread], g[kPerThread], sums[2] = {};  // of g n, and of g
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      n[i] = (x[i] - mean) * scale;  // beyond the end dy is 0, so n does not matter
      g[i] = dy[i] * weight[i];
      dweight[i] += dy[i] * n[i];
      dbias[i] += dy[i];
      sums[0] += g[i] * n[i];
      sums[1] += g[i];
    }
    block_sums(sums, scratch[turn]);
    turn ^= 1;
    const A mean_gn = sums[0] * in.inverse_width, mean_g = kCentered ? sums[1] * in.inverse_width : A(0);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) dx.set(i, dx[i] + scale * (g[i] - mean_g - n[i] * mean_gn));
    dx.write(in.dx + row * in.width, in.width);
  });
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * in.width + S::column(i);
    if (S::column(i) >= in.width) continue;
    if (in.dweight) in.dweight[at] = dweight[i];
    if (in.dbias) in.dbias[at] = dbias[i];
  }
}

constexpr int kColumns = 8, kRowGroups = 128;  // few columns a block, so that narrow sums fill the GPU too

/// out[column] = sum over rows of partial[row, column]; blockIdx.y picks one of two such sums. Groups of rows are added
/// side by side, then the groups by a warp per column, always in the same order.
template <class Out, class A>
__global__ void sum_rows(const A* first, const A* second, int rows, int width, Out* first_out, Out* second_out) {
  __shared__ A groups[kRowGroups][kColumns + 1];
  const A* partial = blockIdx.y == 0 ? first : second;
  Out* out = blockIdx.y == 0 ? first_out : second_out;
  if (!out) return;
  const int column = blockIdx.x * kColumns + threadIdx.x;
  A sum = 0;
  if (column < width)
    for (int row = threadIdx.y; row < rows; row += kRowGroups)
      sum += partial[static_cast<std::int64_t>(row) * width + column];
  groups[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  const int thread = threadIdx.y * kColumns + threadIdx.x, lane = thread % 32, mine = thread / 32;
  if (mine >= kColumns || blockIdx.x * kColumns + mine >= width) return;
  sum = 0;
  for (int group = lane; group < kRowGroups; group += 32) sum += groups[group][mine];
  sum = warp_reduce(sum, Add{});
  if (lane == 0) out[blockIdx.x * kColumns + mine] = convert<Out>(sum);
}

/// Calls f(Spread, threads) with the widest access that rows and addresses allow.
template <class T, class F>
void with_spread(const char* op, std::int64_t width, std::initializer_list<Tensor> operands, F&& f) {
  check(width <= kLongestRow, op, ": rows of ", width, " elements, the CUDA kernel takes at most ", kLongestRow);
  std::uintptr_t alignment = static_cast<std::uintptr_t>(width) * sizeof(T);
  for (const Tensor& t : operands)
    if (t.defined()) alignment |= reinterpret_cast<std::uintptr_t>(t.raw());
  const int threads = static_cast<int>(blocks_for(width, 32 * kPerThread)) * 32;
  if (alignment % 16 == 0) f(Spread<16 / sizeof(T)>{}, threads);
  else if (alignment % 8 == 0) f(Spread<8 / sizeof(T)>{}, threads);
  else f(Spread<1>{}, threads);
}

/// As many blocks as run at once, at most one a row.
template <class Kernel>
unsigned resident_blocks(Kernel kernel, int threads, std::size_t shared, std::int64_t rows, const Context& ctx) {
  int per_multiprocessor = 0;
  allow_shared_memory(kernel, shared);
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, shared), "occupancy");
  return static_cast<unsigned>(std::min<std::int64_t>(rows, per_multiprocessor * ctx.multiprocessors));
}

// The kernels take operands of one dtype. Parameters of another than the activations' are rare: all is converted.
bool differs(const Tensor& parameter, const Tensor& x) { return parameter.defined() && parameter.dtype() != x.dtype(); }
Tensor converted(const Tensor& x, DType dtype) { return x.defined() ? x.to(dtype) : x; }
Tensor result(const Tensor& out, DType dtype) {
  return out.defined() ? Tensor::empty(out.shape(), dtype, out.device()) : out;
}
void give_back(const Tensor& result, const Tensor& out) {
  if (out.defined()) copy(result, out);
}

template <bool kCentered>
void forward(const char* op, const Tensor& x, const Tensor& addend, const Tensor& weight, const Tensor& bias,
             double epsilon, const Tensor& sum, const Tensor& y, const Tensor& mean, const Tensor& scale) {
  if (differs(weight, x) || differs(bias, x)) {
    const DType wide = scale.dtype();
    const Tensor wide_sum = result(sum, wide), wide_y = result(y, wide);
    forward<kCentered>(op, x.to(wide), converted(addend, wide), converted(weight, wide), converted(bias, wide), epsilon,
                       wide_sum, wide_y, mean, scale);
    give_back(wide_sum, sum);
    return give_back(wide_y, y);
  }
  const Context& ctx = context(x.device());
  dispatch_floating(x.dtype(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const ForwardRows<device_t<T>> rows{pointer<T>(x),
                                        pointer<T>(addend),
                                        pointer<T>(weight),
                                        pointer<T>(bias),
                                        pointer<T>(sum),
                                        pointer<T>(y),
                                        pointer<A>(mean),
                                        pointer<A>(scale),
                                        static_cast<A>(epsilon),
                                        A(1) / static_cast<A>(x.size(1)),
                                        x.size(0),
                                        static_cast<int>(x.size(1))};
    with_spread<T>(op, rows.width, {x, addend, weight, bias, sum, y}, [&](auto spread, int threads) {
      const auto kernel = norm_forward<kCentered, decltype(spread), device_t<T>>;
      const std::size_t shared = RowsAhead<decltype(spread), device_t<T>, 2>::bytes(threads);
      kernel<<<resident_blocks(kernel, threads, shared, rows.rows, ctx), threads, shared, ctx.stream>>>(rows);
    });
  });
  check_launch(op);
}

template <bool kCentered>
void backward(const char* op, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
              const Tensor& scale, const Tensor& dsum, const Tensor& dx, const Tensor& dweight, const Tensor& dbias) {
  if (differs(weight, x) || differs(dbias, x)) {
    const DType wide = scale.dtype();
    const Tensor wide_dx = result(dx, wide), wide_dweight = result(dweight, wide), wide_dbias = result(dbias, wide);
    backward<kCentered>(op, dy.to(wide), x.to(wide), converted(weight, wide), mean, scale, converted(dsum, wide),
                        wide_dx, wide_dweight, wide_dbias);
    give_back(wide_dx, dx);
    give_back(wide_dweight, dweight);
    return give_back(wide_dbias, dbias);
  }
  const Context& ctx = context(x.device());
  const std::int64_t width = x.size(1);
  dispatch_floating(x.dtype(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    with_spread<T>(op, width, {dy, x, dsum, weight, dx}, [&](auto spread, int threads) {
      const auto kernel = norm_backward<kCentered, decltype(spread), device_t<T>>;
      const std::size_t shared = RowsAhead<decltype(spread), device_t<T>, 3>::bytes(threads);
      const unsigned blocks = resident_blocks(kernel, threads, shared, x.size(0), ctx);
      const auto partial = [&](const Tensor& sum) {
        return sum.defined() ? Tensor::empty({blocks, width}, dtype_of<A>(), x.device()) : Tensor{};
      };
      const Tensor dweights = partial(dweight), dbiases = partial(dbias);
      const BackwardRows<device_t<T>> rows{pointer<T>(dy),      pointer<T>(x),
                                           pointer<T>(dsum),    pointer<T>(weight),
                                           pointer<A>(mean),    pointer<A>(scale),
                                           pointer<T>(dx),      pointer<A>(dweights),
                                           pointer<A>(dbiases), A(1) / static_cast<A>(width),
                                           x.size(0),           static_cast<int>(width)};
      kernel<<<blocks, threads, shared, ctx.stream>>>(rows);
      check_launch(op);
      if (dweight.defined() || dbias.defined())
        sum_rows<<<dim3(blocks_for(width, kColumns), 2), dim3(kColumns, kRowGroups), 0, ctx.stream>>>(
            rows.dweight, rows.dbias, static_cast<int>(blocks), rows.width, pointer<T>(dweight), pointer<T>(dbias));
    });
  });
  check_launch(op);
}

}  // namespace

void layer_norm(const Tensor& x, const Tensor& addend, const Tensor& weight, const Tensor& bias, double epsilon,
                const Tensor& sum, const Tensor& y, const Tensor& mean, const Tensor& inverse_deviation) {
  forward<true>("layer_norm", x, addend, weight, bias, epsilon, sum, y, mean, inverse_deviation);
}

void layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                         const Tensor& inverse_deviation, const Tensor& dsum, const Tensor& dx, const Tensor& dweight,
                         const Tensor& dbias) {
  backward<true>("layer_norm_backward", dy, x, weight, mean, inverse_deviation, dsum, dx, dweight, dbias);
}

void rms_norm(const Tensor& x, const Tensor& addend, const Tensor& weight, double epsilon, const Tensor& sum,
              const Tensor& y, const Tensor& inverse_rms) {
  forward<false>("rms_norm", x, addend, weight, Tensor{}, epsilon, sum, y, Tensor{}, inverse_rms);
}

void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inverse_rms,
                       const Tensor& dsum, const Tensor& dx, const Tensor& dweight) {
  backward<false>("rms_norm_backward", dy, x, weight, Tensor{}, inverse_rms, dsum, dx, dweight, Tensor{});
}

}  // namespace switchyard::cuda
