// Expert products: the launchers, the f32 and f64 kernels, and the passes around the products. bf16 products run on the
// tensor cores (expert_matmul_bf16.cu).
//
// A product walks tiles of pairs that belong to one expert and gathers the rows it needs itself. Sums over a token's
// pairs go through a buffer with a row per pair and a second kernel that adds in choice order: no atomics, so results
// do not vary. Bytes moved by that pass: (pairs + rows) x width, read and written once.

#include "core/kernels/copy.h"
#include "core/kernels/expert_matmul.h"
#include "cuda/device/reduce.cuh"
#include "cuda/expert_matmul.cuh"
#include "cuda/expert_matmul_dense.h"

namespace switchyard::cuda {
namespace {

using ops::Rows;

constexpr int kTile = 64, kDepth = 16, kPerThread = 4;  // 256 threads, 4 x 4 sums each

/// One kTile x kTile tile of a product: left(i, k) x right(k, j) summed over k < depth, then store(i, j, sum).
template <class A, class Left, class Right, class Store>
__device__ void multiply_tile(int depth, Left left, Right right, Store store) {
  __shared__ A left_tile[kDepth][kTile + 4], right_tile[kDepth][kTile + 4];
  const int row = threadIdx.x / 16 * kPerThread, column = threadIdx.x % 16 * kPerThread;
  A sums[kPerThread][kPerThread] = {};
  for (int k0 = 0; k0 < depth; k0 += kDepth) {
    for (int i = threadIdx.x; i < kTile * kDepth; i += blockDim.x) {
      const int k = i % kDepth, m = i / kDepth, n = i % kTile, kn = i / kTile;
      left_tile[k][m] = k0 + k < depth ? left(m, k0 + k) : A(0);
      right_tile[kn][n] = k0 + kn < depth ? right(k0 + kn, n) : A(0);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k)
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) sums[i][j] += left_tile[k][row + i] * right_tile[k][column + j];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) store(row + i, column + j, sums[i][j]);
}

template <class D>
__global__ void pair_product(PairProduct<D> p) {
  using A = compute_t<D>;
  const PairTile tile = find_tile(p.offsets, p.experts, kTile, blockIdx.x);
  if (tile.count == 0) return;
  const int first_column = blockIdx.y * kTile;
  const D* weight = p.weight + tile.expert * p.weight_stride_expert;
  __shared__ std::int64_t rows[kTile];
  if (threadIdx.x < tile.count) rows[threadIdx.x] = p.source_rows.row(tile.first + threadIdx.x) * p.inner;
  __syncthreads();
  multiply_tile<A>(
      p.inner, [&](int i, int k) { return i < tile.count ? load(p.source + rows[i] + k) : A(0); },
      [&](int k, int j) {
        const int column = first_column + j;
        return column < p.outer ? load(weight + k * p.weight_stride_inner + column * p.weight_stride_outer) : A(0);
      },
      [&](int i, int j, A sum) {
        const int column = first_column + j, pair = tile.first + i;
        if (i < tile.count && column < p.outer)
          p.y[static_cast<std::int64_t>(pair) * p.outer + column] = p.finish(sum, tile.expert, pair, column);
      });
}

template <class D>
__global__ void weight_gradient(WeightGradient<D> g) {
  using A = compute_t<D>;
  const int expert = blockIdx.z, first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  const int begin = g.offsets[expert], count = g.offsets[expert + 1] - begin;
  multiply_tile<A>(
      count,
      [&](int i, int k) {
        const int row = first_row + i;
        return row < g.inner ? load(g.x + g.x_rows.row(begin + k) * g.inner + row) : A(0);
      },
      [&](int k, int j) {
        const int column = first_column + j;
        return column < g.outer ? g.gate(begin + k) * load(g.dy + g.dy_rows.row(begin + k) * g.outer + column) : A(0);
      },
      [&](int i, int j, A sum) {
        const int row = first_row + i, column = first_column + j;
        if (row < g.inner && column < g.outer)
          g.dweight[(static_cast<std::int64_t>(expert) * g.inner + row) * g.outer + column] = convert<D>(sum);
      });
}

/// out[row] = sum over the row's choices, in order, of gate * products[pair]. A block per row, kWidth columns a thread.
template <int kWidth, class D>
__global__ void sum_pairs(const D* products, const std::int32_t* choice_to_pair, const D* gates, int choices_per_row,
                          int width, D* out) {
  using A = compute_t<D>;
  const std::int64_t row = blockIdx.x;
  for (int column = threadIdx.x * kWidth; column < width; column += blockDim.x * kWidth) {
    A sums[kWidth] = {};
    for (int j = 0; j < choices_per_row; ++j) {
      const std::int64_t choice = row * choices_per_row + j;
      const std::int32_t pair = choice_to_pair[choice];
      if (pair < 0) continue;
      const A gate = gates ? load(gates + choice) : A(1);
      const auto values =
          *reinterpret_cast<const Vector<D, kWidth>*>(products + static_cast<std::int64_t>(pair) * width + column);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sums[i] += gate * load(&values.values[i]);
    }
    Vector<D, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) result.values[i] = convert<D>(sums[i]);
    *reinterpret_cast<Vector<D, kWidth>*>(out + row * width + column) = result;
  }
}

/// dgates[choice] = x[row] . products[pair] + bias[expert] . dy[row]; 0 where the choice was not taken. A warp each.
/// With `gates`, the products, once used, are replaced by gate * products.
template <class D>
__global__ void gate_gradients(const D* x, RowMap x_rows, D* products, const D* bias, const D* dy, RowMap dy_rows,
                               const std::int32_t* choice_to_pair, const std::int32_t* offsets, int experts,
                               std::int64_t choices, int inner, int outer, const D* gates, D* dgates) {
  using A = compute_t<D>;
  const std::int64_t choice = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (choice >= choices) return;
  const int pair = choice_to_pair[choice];
  A sum = 0;
  if (pair >= 0) {
    const D* row = x + x_rows.row(pair) * inner;
    D* product = products + static_cast<std::int64_t>(pair) * inner;
    const A gate = gates ? load(gates + choice) : A(1);
    for (int i = lane; i < inner; i += 32) {
      const A value = load(product + i);
      sum += load(row + i) * value;
      if (gates) product[i] = convert<D>(gate * value);
    }
    if (bias) {
      int expert = 0;
      for (int last = experts; last - expert > 1;) {
        const int middle = (expert + last) / 2;
        (offsets[middle] <= pair ? expert : last) = middle;
      }
      const D* gradient = dy + dy_rows.row(pair) * outer;
      for (int i = lane; i < outer; i += 32)
        sum += load(bias + static_cast<std::int64_t>(expert) * outer + i) * load(gradient + i);
    }
  }
  sum = warp_reduce(sum, Add{});
  if (lane == 0) dgates[choice] = convert<D>(sum);
}

/// dbias[expert] = sum over its pairs of gate * dy[row]. A block per expert and 64 columns, 4 groups of threads.
template <class D>
__global__ void bias_gradients(WeightGradient<D> g, D* dbias) {
  using A = compute_t<D>;
  const int expert = blockIdx.y, column = blockIdx.x * 64 + threadIdx.x;
  A sum = 0;
  if (column < g.outer)
    for (int pair = g.offsets[expert] + threadIdx.y; pair < g.offsets[expert + 1]; pair += 4)
      sum += g.gate(pair) * load(g.dy + g.dy_rows.row(pair) * g.outer + column);
  __shared__ A parts[4][64];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < g.outer)
    dbias[static_cast<std::int64_t>(expert) * g.outer + column] =
        convert<D>(parts[0][threadIdx.x] + parts[1][threadIdx.x] + parts[2][threadIdx.x] + parts[3][threadIdx.x]);
}

template <class T>
void multiply_pairs(const Tensor& source, Rows source_rows, const Tensor& weight, const Tensor& bias,
                    const Tensor& gates, const ops::RoutingPlan& plan, ops::Activation activation, const Tensor& y) {
  using D = device_t<T>;
  const PairProduct<D> product{pointer<T>(source),
                               row_map(plan, source_rows),
                               pointer<T>(weight),
                               weight.stride(0),
                               weight.stride(1),
                               weight.stride(2),
                               pointer<T>(bias),
                               pointer<T>(gates),
                               plan.expert_offsets.data<std::int32_t>(),
                               static_cast<int>(plan.experts),
                               static_cast<int>(weight.size(1)),
                               static_cast<int>(weight.size(2)),
                               activation,
                               pointer<T>(y)};
  const cudaStream_t stream = stream_of(y);
  if (plan.max_pairs() == 0 || y.numel() == 0) return;
  // Pairs that a mask leaves out have no product: their rows are zeroed, so that nothing unwritten is ever read.
  if (plan.choices * plan.slots == plan.experts) fill(y, 0);
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (!launch_pair_product_hopper(product, plan.max_pairs(), context(y.device())))
      launch_pair_product(product, max_tiles(plan, kTensorCoreRows), stream);
  } else {
    pair_product<<<dim3(blocks_for(max_tiles(plan, kTile), 1), blocks_for(product.outer, kTile)), 256, 0, stream>>>(
        product);
    check_launch("expert_matmul");
  }
}

/// Sums the pairs of each row or token of `out`.
template <class T>
void sum_into_rows(const Tensor& products, const Tensor& gates, const ops::RoutingPlan& plan, const Tensor& out) {
  if (out.numel() == 0) return;
  const int per_row = static_cast<int>(plan.max_pairs() / out.size(0)), width = static_cast<int>(out.size(1));
  constexpr int kWide = 16 / sizeof(T);
  const auto launch = [&](auto access) {
    const int threads = std::clamp((width / access.value + 31) / 32 * 32, 32, 256);
    sum_pairs<access.value><<<blocks_for(out.size(0), 1), threads, 0, stream_of(out)>>>(
        pointer<T>(products), plan.choice_to_pair.data<std::int32_t>(), pointer<T>(gates), per_row, width,
        pointer<T>(out));
  };
  if (width % kWide == 0) launch(std::integral_constant<int, kWide>{});  // new tensors are aligned to 16 bytes and more
  else launch(std::integral_constant<int, 1>{});
  check_launch("expert_matmul: sum over pairs");
}

template <class T>
void input_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                    const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options, const Tensor& dx,
                    const Tensor& dgates) {
  const bool by_pair = options.input == Rows::pair;
  const Tensor transposed = weight.transpose(1, 2);
  if (by_pair && !dgates.defined())
    return multiply_pairs<T>(dy, options.output, transposed, {}, gates, plan, ops::Activation::identity, dx);
  const bool in_place = by_pair && dx.defined();
  const Tensor products = in_place ? dx : Tensor::empty({plan.max_pairs(), x.size(1)}, x.dtype(), x.device());
  multiply_pairs<T>(dy, options.output, transposed, {}, {}, plan, ops::Activation::identity, products);
  if (dgates.defined() && dgates.numel() > 0) {
    gate_gradients<<<blocks_for(plan.max_pairs(), 8), 256, 0, stream_of(x)>>>(
        pointer<T>(x), row_map(plan, options.input), pointer<T>(products), pointer<T>(bias), pointer<T>(dy),
        row_map(plan, options.output), plan.choice_to_pair.data<std::int32_t>(),
        plan.expert_offsets.data<std::int32_t>(), static_cast<int>(plan.experts), plan.max_pairs(),
        static_cast<int>(x.size(1)), static_cast<int>(dy.size(1)), in_place ? pointer<T>(gates) : nullptr,
        pointer<T>(dgates));
    check_launch("expert_matmul_input_backward: gates");
  }
  if (!by_pair && dx.defined()) sum_into_rows<T>(products, gates, plan, dx);
}

}  // namespace

void expert_matmul(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                   const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options, const Tensor& y) {
  if (dense_product_pays(bias, plan, options)) return dense_expert_matmul(x, weight, gates, plan, options, y);
  dispatch_floating(x.dtype(), "expert_matmul", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (options.output == Rows::pair)
      return multiply_pairs<T>(x, options.input, weight, bias, gates, plan, options.activation, y);
    const Tensor products = Tensor::empty({plan.max_pairs(), weight.size(2)}, x.dtype(), x.device());
    multiply_pairs<T>(x, options.input, weight, bias, {}, plan, ops::Activation::identity, products);
    sum_into_rows<T>(products, gates, plan, y);
  });
}

void expert_matmul_input_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& bias,
                                  const Tensor& gates, const ops::RoutingPlan& plan,
                                  const ops::ExpertMatmulOptions& options, const Tensor& dx, const Tensor& dgates) {
  if (dense_product_pays(bias, plan, options))
    return dense_expert_matmul_input_backward(dy, x, weight, gates, plan, options, dx, dgates);
  dispatch_floating(x.dtype(), "expert_matmul_input_backward", [&](auto tag) {
    input_backward<typename decltype(tag)::type>(dy, x, weight, bias, gates, plan, options, dx, dgates);
  });
}

void expert_matmul_weight_backward(const Tensor& dy, const Tensor& x, const Tensor& gates, const ops::RoutingPlan& plan,
                                   const ops::ExpertMatmulOptions& options, const Tensor& dweight,
                                   const Tensor& dbias) {
  if (dense_product_pays(dbias, plan, options))
    return dense_expert_matmul_weight_backward(dy, x, gates, plan, options, dweight);
  const int experts = static_cast<int>(plan.experts);
  const cudaStream_t stream = stream_of(dweight);
  dispatch_floating(x.dtype(), "expert_matmul_weight_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const WeightGradient<device_t<T>> gradient{pointer<T>(x),
                                               row_map(plan, options.input),
                                               pointer<T>(dy),
                                               row_map(plan, options.output),
                                               pointer<T>(gates),
                                               plan.expert_offsets.data<std::int32_t>(),
                                               static_cast<int>(x.size(1)),
                                               static_cast<int>(dy.size(1)),
                                               pointer<T>(dweight)};
    if (dweight.numel() > 0) {
      if constexpr (std::is_same_v<T, bfloat16>) {
        launch_weight_gradient(gradient, experts, dweight.device());
      } else {
        weight_gradient<<<dim3(blocks_for(gradient.outer, kTile), blocks_for(gradient.inner, kTile), experts), 256, 0,
                          stream>>>(gradient);
        check_launch("expert_matmul_weight_backward");
      }
    }
    if (dbias.defined() && dbias.numel() > 0) {
      bias_gradients<<<dim3(blocks_for(gradient.outer, 64), experts), dim3(64, 4), 0, stream>>>(gradient,
                                                                                                pointer<T>(dbias));
      check_launch("expert_matmul_weight_backward: bias");
    }
  });
}

}  // namespace switchyard::cuda
