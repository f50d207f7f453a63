// Reductions over any axes. Two shapes of kernel, by whether the innermost axis of x survives: threads across columns
// if it does, a block per output if not. Long reductions are cut into a fixed number of chunks whose partial results a
// second launch combines, so no atomics are needed and results do not vary.

#include "core/kernels/reduce.h"
#include "core/ops/norm.h"
#include "cuda/reduce.cuh"

namespace switchyard::cuda {
namespace {

using ops::Reduction;

template <class A>
struct Combine {
  Reduction op;
  __device__ A identity() const {
    if (op != Reduction::max) return A(0);
    if constexpr (std::is_same_v<A, float> || std::is_same_v<A, double>) return -A(INFINITY);
    else return A(INT64_MIN);
  }
  __device__ A operator()(A a, A b) const { return op == Reduction::max ? Max{}(a, b) : a + b; }
};

/// Where x's elements lie: `kept` walks the outputs, `reduced` the elements of one output.
struct Plan {
  Layout<1> kept, reduced;
  std::int64_t outputs = 1, length = 1;
  std::int64_t chunks = 1;
};

constexpr int kColumnThreads = 32, kRowThreads = 8;

/// A block of kRowThreads x kColumnThreads per 32 outputs and chunk; neighbours in a warp read neighbours in memory.
template <class D, class A, class Out>
__global__ void reduce_columns(Plan plan, Combine<A> combine, A scale, const D* x, Out* out) {
  const std::int64_t output = static_cast<std::int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  const std::int64_t per_chunk = (plan.length + plan.chunks - 1) / plan.chunks;
  const std::int64_t first = blockIdx.y * per_chunk, last = min(plan.length, first + per_chunk);
  A value = combine.identity();
  if (output < plan.outputs) {
    std::int64_t at[1];
    plan.kept.offsets(output, at);
    const D* column = x + at[0];
    for (std::int64_t i = first + threadIdx.y; i < last; i += kRowThreads) {
      std::int64_t row[1];
      plan.reduced.offsets(i, row);
      value = combine(value, convert<A>(column[row[0]]));
    }
  }
  __shared__ A partial[kRowThreads][kColumnThreads];
  partial[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.y == 0 && output < plan.outputs) {
    for (int i = 1; i < kRowThreads; ++i) value = combine(value, partial[i][threadIdx.x]);
    out[blockIdx.y * plan.outputs + output] = convert<Out>(value * scale);
  }
}

/// A block per output and chunk.
template <class D, class A, class Out>
__global__ void reduce_rows(Plan plan, Combine<A> combine, A scale, const D* x, Out* out) {
  const std::int64_t output = blockIdx.x;
  const std::int64_t per_chunk = (plan.length + plan.chunks - 1) / plan.chunks;
  const std::int64_t first = blockIdx.y * per_chunk, last = min(plan.length, first + per_chunk);
  std::int64_t at[1];
  plan.kept.offsets(output, at);
  const D* row = x + at[0];
  A value = combine.identity();
  for (std::int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
    std::int64_t column[1];
    plan.reduced.offsets(i, column);
    value = combine(value, convert<A>(row[column[0]]));
  }
  __shared__ A scratch[32];
  value = block_reduce(value, combine, combine.identity(), scratch);
  if (threadIdx.x == 0) out[blockIdx.y * plan.outputs + output] = convert<Out>(value * scale);
}

template <class D, class A, class Out>
void launch(const Plan& plan, bool columns, Reduction op, double scale, const D* x, Out* out, cudaStream_t stream) {
  const auto chunks = static_cast<unsigned>(plan.chunks);
  if (columns) {
    reduce_columns<<<dim3(blocks_for(plan.outputs, kColumnThreads), chunks), dim3(kColumnThreads, kRowThreads), 0,
                     stream>>>(plan, Combine<A>{op}, static_cast<A>(scale), x, out);
  } else {
    const int threads = plan.length >= 512 ? 256 : 32;
    reduce_rows<<<dim3(blocks_for(plan.outputs, 1), chunks), threads, 0, stream>>>(plan, Combine<A>{op},
                                                                                   static_cast<A>(scale), x, out);
  }
  check_launch("reduce");
}

Layout<1> axes_layout(const Tensor& x, const Tensor& out, bool reduced) {
  Shape sizes, strides;
  for (std::int64_t axis = 0; axis < x.rank(); ++axis)
    if ((out.shape()[axis] == 1 && x.shape()[axis] != 1) == reduced) {
      sizes.push_back(x.shape()[axis]);
      strides.push_back(x.strides()[axis]);
    }
  const Tensor part = Tensor::view_of(x.storage(), sizes, strides, 0, x.dtype());
  return layout_of<1>({&part});
}

template <class T, class A, class Out>
void reduce_as(Reduction op, const Tensor& x, const Tensor& out) {
  Plan plan{axes_layout(x, out, false), axes_layout(x, out, true), out.numel(), 0, 1};
  plan.length = out.numel() > 0 ? x.numel() / out.numel() : 0;
  if (plan.outputs == 0) return;
  const auto innermost = [](const Layout<1>& layout) {
    return layout.rank > 0 ? layout.stride[0][layout.rank - 1] : INT64_MAX;
  };
  const bool columns = innermost(plan.kept) < innermost(plan.reduced) && plan.outputs >= 8;
  const std::int64_t blocks = columns ? (plan.outputs + kColumnThreads - 1) / kColumnThreads : plan.outputs;
  const Context& ctx = context(x.device());
  // Enough chunks to fill the GPU, none shorter than 64 elements a thread row.
  plan.chunks =
      std::clamp<std::int64_t>(4 * ctx.multiprocessors / blocks, 1, std::max<std::int64_t>(1, plan.length / 1024));
  const double scale = op == Reduction::mean ? 1.0 / static_cast<double>(plan.length) : 1.0;
  if (plan.chunks == 1) {
    launch<device_t<T>, A>(plan, columns, op, scale, pointer<T>(x), pointer<Out>(out), ctx.stream);
    return;
  }
  const Tensor partial = Tensor::empty({plan.chunks, plan.outputs}, dtype_of<A>(), x.device());
  launch<device_t<T>, A>(plan, columns, op, 1.0, pointer<T>(x), pointer<A>(partial), ctx.stream);
  const Tensor columns_view = partial.transpose(0, 1);  // [outputs, chunks]
  const Tensor kept = columns_view.slice(1, 0, 1).squeeze(1), reduced = columns_view.slice(0, 0, 1).squeeze(0);
  const Plan second{layout_of<1>({&kept}), layout_of<1>({&reduced}), plan.outputs, plan.chunks, 1};
  launch<A, A>(second, true, op, scale, pointer<A>(partial), pointer<Out>(out), ctx.stream);
}

template <class D>
__global__ void argmax_rows(const D* x, std::int64_t width, std::int64_t* out) {
  using A = compute_t<D>;
  const D* row = x + blockIdx.x * width;
  A best = 0;
  std::int64_t where = -1;
  // The larger value wins, NaN over all, and the lower position among equals.
  const auto better = [](A a, std::int64_t i, A b, std::int64_t j) {
    if (j < 0) return true;
    if (i < 0) return false;
    const bool nan_a = a != a, nan_b = b != b;
    if (nan_a || nan_b) return nan_a && (!nan_b || i < j);
    return a > b || (a == b && i < j);
  };
  for (std::int64_t i = threadIdx.x; i < width; i += 32) {
    const A value = load(row + i);
    if (better(value, i, best, where)) best = value, where = i;
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const A value = __shfl_xor_sync(0xffffffffu, best, distance);
    const std::int64_t i = __shfl_xor_sync(0xffffffffu, where, distance);
    if (better(value, i, best, where)) best = value, where = i;
  }
  if (threadIdx.x == 0) out[blockIdx.x] = where;
}

template <class D>
__global__ void count_nonfinite_blocks(Layout<1> layout, std::int64_t count, const D* x, unsigned long long* out) {
  std::int64_t bad = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    std::int64_t at[1];
    layout.offsets(i, at);
    bad += !isfinite(load(x + at[0]));
  }
  __shared__ std::int64_t scratch[32];
  bad = block_reduce(bad, Add{}, std::int64_t{0}, scratch);
  if (threadIdx.x == 0 && bad > 0) atomicAdd(out, static_cast<unsigned long long>(bad));  // integers: any order
}

}  // namespace

void reduce(Reduction op, const Tensor& x, const Tensor& out) {
  dispatch_all(x.dtype(), "reduce", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, bfloat16>) {
      reduce_as<T, accumulate_t<T>, T>(op, x, out);
    } else if (op == Reduction::max) {
      reduce_as<T, std::int64_t, T>(op, x, out);
    } else {
      reduce_as<T, std::int64_t, std::int64_t>(op, x, out);
    }
  });
}

void argmax(const Tensor& x, const Tensor& out) {
  if (out.numel() == 0) return;
  dispatch_all(x.dtype(), "argmax", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Tensor dense = x.contiguous();
    argmax_rows<<<blocks_for(out.numel(), 1), 32, 0, stream_of(x)>>>(pointer<T>(dense), x.size(-1),
                                                                     out.data<std::int64_t>());
  });
  check_launch("argmax");
}

void count_nonfinite(const Tensor& x, const Tensor& out) {
  const cudaStream_t stream = stream_of(x);
  check_cuda(cudaMemsetAsync(out.raw(), 0, out.bytes(), stream), "count_nonfinite");
  if (x.numel() == 0) return;
  dispatch_floating(x.dtype(), "count_nonfinite", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const unsigned blocks = std::min(blocks_for(x.numel(), 4 * kThreads), 1024u);
    count_nonfinite_blocks<<<blocks, kThreads, 0, stream>>>(
        layout_of<1>({&x}), x.numel(), pointer<T>(x), reinterpret_cast<unsigned long long*>(out.data<std::int64_t>()));
  });
  check_launch("count_nonfinite");
}

}  // namespace switchyard::cuda
