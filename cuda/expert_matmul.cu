// Expert products: the launchers, and the f32 and f64 kernels. bf16 products run on the tensor cores
// (expert_matmul_bf16.cu, expert_product_hopper.cu).
//
// A product walks tiles of pairs that belong to one expert and gathers the rows it needs itself. Sums over a token's
// pairs go through a buffer with a row per pair and a second kernel (expert_reduce.cu) that adds in choice order: no
// atomics, so results do not vary.

#include "core/kernels/expert_matmul.h"
#include "core/ops/norm.h"
#include "cuda/expert_matmul.cuh"
#include "cuda/expert_matmul_dense.h"
#include "cuda/expert_reduce.cuh"
#include "cuda/expert_sum_hopper.h"

namespace switchyard::cuda {
namespace {

using ops::Rows;

constexpr int kTile = 64, kDepth = 16, kPerThread = 4;  // 256 threads, 4 x 4 sums each
constexpr int kUnitsCleared = 8;                        // by a thread, at most

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
PairProduct<device_t<T>> product_of(const Tensor& source, Rows source_rows, const Tensor& weight, const Tensor& bias,
                                    const Tensor& gates, const ops::RoutingPlan& plan, ops::Activation activation,
                                    const Tensor& y) {
  return {pointer<T>(source),
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
}

template <class D>
void multiply_pairs(const PairProduct<D>& product, const ops::RoutingPlan& plan, const Tensor& y) {
  const Context& ctx = context(y.device());
  if (plan.max_pairs() == 0 || y.numel() == 0) return;
  if constexpr (std::is_same_v<D, __nv_bfloat16>) {
    if (hopper_tile_columns(product, ctx) > 0) launch_pair_product_hopper(product, plan.max_pairs(), ctx);
    else launch_pair_product(product, max_tiles(plan, kTensorCoreRows), ctx.stream);
  } else {
    const dim3 grid(blocks_for(max_tiles(plan, kTile), 1), blocks_for(product.outer, kTile));
    pair_product<<<grid, 256, 0, ctx.stream>>>(product);
    check_launch("expert_matmul");
  }
}

/// What becomes of products [pairs, width] that have `rows` output rows. x, dx and dgates may be undefined.
template <class T>
PairSum<device_t<T>> sum_of(const Tensor& products, std::int64_t rows, const Tensor& gates,
                            const ops::RoutingPlan& plan, const Tensor& dx, const Tensor& x, const Tensor& dgates) {
  return {pointer<T>(products),
          plan.choice_to_pair.data<std::int32_t>(),
          pointer<T>(gates),
          rows,
          static_cast<int>(rows == 0 ? 0 : plan.max_pairs() / rows),
          static_cast<int>(products.size(1)),
          pointer<T>(dx),
          pointer<T>(x),
          pointer<T>(dgates)};
}

/// Rows from number `*first` on become 0.
template <class Unit>
__global__ void clear_rows(const std::int32_t* first, std::int64_t rows, std::int64_t units_per_row, Unit* y) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t unit = *first * units_per_row + static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; unit < rows * units_per_row; unit += stride) y[unit] = Unit{};
}

/// A mask may leave pairs out. Nobody reads their rows for their values, but elementwise ops pass over them.
void clear_missing(const Tensor& y, const ops::RoutingPlan& plan) {
  if (plan.choices * plan.slots != plan.experts || y.numel() == 0) return;
  const std::int32_t* pairs = plan.expert_offsets.data<std::int32_t>() + plan.experts;
  const auto row_bytes = static_cast<std::int64_t>(y.bytes()) / y.size(0);
  const auto clear_by = [&]<class Unit>(Unit) {
    const std::int64_t units = row_bytes / static_cast<std::int64_t>(sizeof(Unit));
    clear_rows<<<blocks_for(y.size(0) * units, kThreads * kUnitsCleared), kThreads, 0, stream_of(y)>>>(
        pairs, y.size(0), units, reinterpret_cast<Unit*>(y.raw()));
  };
  if (row_bytes % sizeof(uint4) == 0) clear_by(uint4{});
  else if (row_bytes % sizeof(std::uint32_t) == 0) clear_by(std::uint32_t{});
  else clear_by(std::uint16_t{});
  check_launch("expert_matmul: missing pairs");
}

/// The input gradient where every pair has a row of its own.
template <class D>
void input_backward_by_pair(PairProduct<D> product, PairSum<D> sum, RowMap x_rows, bool through_relu,
                            const ops::RoutingPlan& plan, const Tensor& dx) {
  const Context& ctx = context(dx.device());
  if (sum.dgates == nullptr && !through_relu) return multiply_pairs(product, plan, dx);
  if constexpr (std::is_same_v<D, __nv_bfloat16>) {
    if (const int columns = hopper_tile_columns(product, ctx); columns > 0) {
      const int tiles = (product.outer + columns - 1) / columns;
      const Tensor dots = sum.dgates ? Tensor::empty({plan.max_pairs(), tiles}, DType::f32, dx.device()) : Tensor{};
      product.x = sum.x;
      product.dots = pointer<float>(dots);
      product.through_relu = through_relu;
      multiply_pairs(product, plan, dx);
      if (sum.dgates) launch_sum_dots(sum, product.dots, tiles, ctx.stream);
      return;
    }
  }
  product.gates = nullptr;
  multiply_pairs(product, plan, dx);
  launch_gate_gradients(sum, x_rows, through_relu, product.y, ctx.stream);
}

template <class T>
void input_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                    const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options, const Tensor& dx,
                    const Tensor& dgates) {
  using D = device_t<T>;
  const cudaStream_t stream = stream_of(x);
  const bool by_pair = options.input == Rows::pair;
  const Tensor products =
      by_pair && dx.defined() ? dx : Tensor::empty({plan.max_pairs(), x.size(1)}, x.dtype(), x.device());
  const auto product = product_of<T>(dy, options.output, weight.transpose(1, 2), {}, by_pair ? gates : Tensor{}, plan,
                                     ops::Activation::identity, products);
  PairSum<D> sum = sum_of<T>(products, x.size(0), gates, plan, by_pair ? Tensor{} : dx, x, dgates);
  Tensor bias_products;
  if (bias.defined() && dgates.defined()) {
    bias_products = Tensor::empty({plan.max_pairs()}, ops::compute_dtype(x.dtype()), x.device());
    auto* to = reinterpret_cast<compute_t<D>*>(bias_products.raw());
    launch_bias_products(pointer<T>(bias), pointer<T>(dy), row_map(plan, options.output), sum, product.offsets,
                         product.experts, product.inner, to, stream);
    sum.bias_products = to;
  }
  const RowMap x_rows = row_map(plan, options.input);
  if (by_pair) {
    clear_missing(products, plan);
    return input_backward_by_pair(product, sum, x_rows, options.input_activation == ops::Activation::relu, plan,
                                  products);
  }
  multiply_pairs(product, plan, products);
  launch_sum_pairs(sum, x_rows, stream);
}

}  // namespace

void expert_matmul(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                   const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options, const Tensor& y) {
  if (dense_product_pays(bias, plan, options)) return dense_expert_matmul(x, weight, gates, plan, options, y);
  dispatch_floating(x.dtype(), "expert_matmul", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (options.output == Rows::pair) {
      if (options.clear_missing) clear_missing(y, plan);
      return multiply_pairs(product_of<T>(x, options.input, weight, bias, gates, plan, options.activation, y), plan, y);
    }
    if (options.input == Rows::pair && !bias.defined() && !gates.defined() && pattern_sums_fit(x, weight, plan)) {
      const PatternSums sums = pattern_sums(x, weight, plan);
      return launch_sum_pairs(sum_of<T>(sums.rows, y.size(0), {}, sums.patterns, y, {}, {}), {}, stream_of(y));
    }
    const Tensor products = Tensor::empty({plan.max_pairs(), weight.size(2)}, x.dtype(), x.device());
    multiply_pairs(product_of<T>(x, options.input, weight, bias, {}, plan, ops::Activation::identity, products), plan,
                   products);
    launch_sum_pairs(sum_of<T>(products, y.size(0), gates, plan, y, {}, {}), {}, stream_of(y));
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
