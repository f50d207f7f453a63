// Layer norm and RMS norm over rows of [n, d], with the addition that stands before them in a residual stream. Forward
// reads x (and the addend) once and writes y (and the sum) once. Backward reads dy and x (and the sum's gradient) once
// and writes dx once; it keeps the sums for weight and bias in registers: a block walks over many rows and leaves one
// row of partial sums, which a second small kernel adds in order.

#include "core/kernels/norm.h"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kLongestRow = 8192;

/// How a block shares out a row: threads take pieces of kWidth neighbours in turn, up to kPerThread elements in all.
template <int kElements, int kPieceWidth>
struct Spread {
  static constexpr int kPerThread = kElements, kWidth = kPieceWidth, kPieces = kPerThread / kWidth;

  /// The row's element that this thread holds in `slot`.
  __device__ static int column(int slot) { return (slot / kWidth * blockDim.x + threadIdx.x) * kWidth + slot % kWidth; }
};

// Rows up to kShortRow take few registers a thread, longer ones fewer threads than they would need otherwise.
constexpr int kShortRow = 2048, kShortElements = 8, kLongElements = 16;
template <class S>
constexpr int kMaxThreads = S::kPerThread == kShortElements ? kShortRow / kShortElements : kLongestRow / kLongElements;
constexpr int kMaxWarps = kLongestRow / kLongElements / 32;

/// One thread's share of a row, as it lies in memory: bf16 takes half the registers of its float values.
template <class S, class D>
struct Share {
  Vector<D, S::kWidth> pieces[S::kPieces];

  __device__ compute_t<D> operator[](int slot) const {
    return load(&pieces[slot / S::kWidth].values[slot % S::kWidth]);
  }
  __device__ void set(int slot, compute_t<D> value) {
    pieces[slot / S::kWidth].values[slot % S::kWidth] = convert<D>(value);
  }
  /// Zeros stand in beyond the end of the row, and for a row that is not there.
  __device__ void read(const D* row, int width) {
#pragma unroll
    for (int piece = 0; piece < S::kPieces; ++piece) {
      const int column = S::column(piece * S::kWidth);
      pieces[piece] =
          row && column < width ? *reinterpret_cast<const Vector<D, S::kWidth>*>(row + column) : Vector<D, S::kWidth>{};
    }
  }
  __device__ void write(D* row, int width) const {
#pragma unroll
    for (int piece = 0; piece < S::kPieces; ++piece) {
      const int column = S::column(piece * S::kWidth);
      if (column < width) *reinterpret_cast<Vector<D, S::kWidth>*>(row + column) = pieces[piece];
    }
  }
};

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
/// block takes rows b, b + grid, ... and reads the next one while it works on the last.
template <bool kCentered, class S, class D>
__global__ void __launch_bounds__(kMaxThreads<S>, 768 / kMaxThreads<S>) norm_forward(ForwardRows<D> in) {
  using A = compute_t<D>;
  __shared__ A scratch[2][1][kMaxWarps];
  Share<S, D> weight, bias, next_x, next_addend;
  weight.read(in.weight, in.width);
  bias.read(in.bias, in.width);
  const auto read = [&](std::int64_t row) {
    next_x.read(row < in.rows ? in.x + row * in.width : nullptr, in.width);
    next_addend.read(row < in.rows && in.addend ? in.addend + row * in.width : nullptr, in.width);
  };
  read(blockIdx.x);
  for (std::int64_t row = blockIdx.x; row < in.rows; row += gridDim.x) {
    Share<S, D> x = next_x;
    if (in.addend) {
#pragma unroll
      for (int i = 0; i < S::kPerThread; ++i) x.set(i, x[i] + next_addend[i]);
      x.write(in.sum + row * in.width, in.width);
    }
    read(row + gridDim.x);
    A mean[1] = {}, squares[1] = {};
    if constexpr (kCentered) {
#pragma unroll
      for (int i = 0; i < S::kPerThread; ++i) mean[0] += x[i];
      block_sums(mean, scratch[0]);
      mean[0] *= in.inverse_width;
    }
#pragma unroll
    for (int i = 0; i < S::kPerThread; ++i) {
      const A centered = S::column(i) < in.width ? x[i] - mean[0] : A(0);
      squares[0] += centered * centered;
    }
    block_sums(squares, scratch[1]);
    if constexpr (!kCentered) __syncthreads();  // before scratch[1] is written again
    const A scale = rsqrt(squares[0] * in.inverse_width + in.epsilon);
#pragma unroll
    for (int i = 0; i < S::kPerThread; ++i) {
      const A normal = (x[i] - mean[0]) * scale;
      x.set(i, (in.weight ? normal * weight[i] : normal) + bias[i]);
    }
    x.write(in.y + row * in.width, in.width);
    if (threadIdx.x != 0) continue;
    if constexpr (kCentered) in.mean[row] = mean[0];
    in.scale[row] = scale;
  }
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
__global__ void __launch_bounds__(kMaxThreads<S>, 768 / kMaxThreads<S>) norm_backward(BackwardRows<D> in) {
  using A = compute_t<D>;
  __shared__ A scratch[2][2][kMaxWarps];
  A dweight[S::kPerThread] = {}, dbias[S::kPerThread] = {};
  Share<S, D> weight, next_x, next_dy, next_dsum;
  weight.read(in.weight, in.width);
  A next_scale, next_mean;
  const auto read = [&](std::int64_t row) {
    next_x.read(row < in.rows ? in.x + row * in.width : nullptr, in.width);
    next_dy.read(row < in.rows ? in.dy + row * in.width : nullptr, in.width);
    next_dsum.read(row < in.rows && in.dsum ? in.dsum + row * in.width : nullptr, in.width);
    next_scale = row < in.rows ? in.scale[row] : A(0);
    next_mean = kCentered && row < in.rows ? in.mean[row] : A(0);
  };
  read(blockIdx.x);
  int turn = 0;
  for (std::int64_t row = blockIdx.x; row < in.rows; row += gridDim.x, turn ^= 1) {
    const Share<S, D> x = next_x, dy = next_dy, dsum = next_dsum;
    const A scale = next_scale, mean = next_mean;
    read(row + gridDim.x);
    A n[S::kPerThread], g[S::kPerThread], sums[2] = {};  // of g n, and of g
#pragma unroll
    for (int i = 0; i < S::kPerThread; ++i) {
      n[i] = S::column(i) < in.width ? (x[i] - mean) * scale : A(0);
      g[i] = in.weight ? dy[i] * weight[i] : dy[i];
      dweight[i] += dy[i] * n[i];
      dbias[i] += dy[i];
      sums[0] += g[i] * n[i];
      sums[1] += g[i];
    }
    block_sums(sums, scratch[turn]);
    const A mean_gn = sums[0] * in.inverse_width, mean_g = kCentered ? sums[1] * in.inverse_width : A(0);
    Share<S, D> dx;
#pragma unroll
    for (int i = 0; i < S::kPerThread; ++i) dx.set(i, dsum[i] + scale * (g[i] - mean_g - n[i] * mean_gn));
    dx.write(in.dx + row * in.width, in.width);
  }
#pragma unroll
  for (int i = 0; i < S::kPerThread; ++i) {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * in.width + S::column(i);
    if (S::column(i) >= in.width) continue;
    if (in.dweight) in.dweight[at] = dweight[i];
    if (in.dbias) in.dbias[at] = dbias[i];
  }
}

constexpr int kColumns = 32, kRowGroups = 32;

/// out[column] = sum over rows of partial[row, column]; blockIdx.y picks one of two such sums. Groups of rows are added
/// side by side, then the groups, always in the same order.
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
  sum = warp_reduce(groups[threadIdx.x][threadIdx.y], Add{});  // transposed: a warp per column
  const int reduced = blockIdx.x * kColumns + threadIdx.y;
  if (threadIdx.x == 0 && reduced < width) out[reduced] = convert<Out>(sum);
}

/// Calls f(Spread, threads) with the widest access that rows and addresses allow.
template <class T, class F>
void with_spread(const char* op, std::int64_t width, std::initializer_list<Tensor> operands, F&& f) {
  check(width <= kLongestRow, op, ": rows of ", width, " elements, the CUDA kernel takes at most ", kLongestRow);
  std::uintptr_t alignment = static_cast<std::uintptr_t>(width) * sizeof(T);
  for (const Tensor& t : operands)
    if (t.defined()) alignment |= reinterpret_cast<std::uintptr_t>(t.raw());
  const auto with_access = [&](auto bytes) {
    constexpr int kWidth = bytes.value / sizeof(T);
    const auto threads = [&](int elements) { return static_cast<int>(blocks_for(width, 32 * elements)) * 32; };
    if (width <= kShortRow) f(Spread<kShortElements, kWidth>{}, threads(kShortElements));
    else f(Spread<kLongElements, kWidth>{}, threads(kLongElements));
  };
  if (alignment % 16 == 0) with_access(std::integral_constant<int, 16>{});
  else if (alignment % 8 == 0) with_access(std::integral_constant<int, 8>{});
  else with_access(std::integral_constant<int, sizeof(T)>{});
}

/// As many blocks as run at once, at most one a row.
template <class Kernel>
unsigned resident_blocks(Kernel kernel, int threads, std::int64_t rows, const Context& ctx) {
  int per_multiprocessor = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, 0), "occupancy");
  return static_cast<unsigned>(std::min<std::int64_t>(rows, per_multiprocessor * ctx.multiprocessors));
}

template <bool kCentered>
void forward(const char* op, const Tensor& x, const Tensor& addend, const Tensor& weight, const Tensor& bias,
             double epsilon, const Tensor& sum, const Tensor& y, const Tensor& mean, const Tensor& scale) {
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
      kernel<<<resident_blocks(kernel, threads, rows.rows, ctx), threads, 0, ctx.stream>>>(rows);
    });
  });
  check_launch(op);
}

template <bool kCentered>
void backward(const char* op, const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
              const Tensor& scale, const Tensor& dsum, const Tensor& dx, const Tensor& dweight, const Tensor& dbias) {
  const Context& ctx = context(x.device());
  const std::int64_t width = x.size(1);
  dispatch_floating(x.dtype(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    with_spread<T>(op, width, {dy, x, dsum, weight, dx}, [&](auto spread, int threads) {
      const auto kernel = norm_backward<kCentered, decltype(spread), device_t<T>>;
      const unsigned blocks = resident_blocks(kernel, threads, x.size(0), ctx);
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
      kernel<<<blocks, threads, 0, ctx.stream>>>(rows);
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
