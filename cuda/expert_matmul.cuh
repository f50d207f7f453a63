#pragma once

#include "core/ops/expert_matmul.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {

/// Which row of an operand belongs to a pair.
struct RowMap {
  const std::int32_t* pair_to_choice;
  int choices_per_row;  // 0: the operand has a row per pair

  __device__ std::int64_t row(int pair) const {
    return choices_per_row == 0 ? pair : pair_to_choice[pair] / choices_per_row;
  }
};

inline RowMap row_map(const ops::RoutingPlan& plan, ops::Rows rows) {
  const std::int64_t per_row = rows == ops::Rows::pair  ? 0
                               : rows == ops::Rows::row ? plan.choices
                                                        : plan.choices * plan.slots;
  return {plan.pair_to_choice.data<std::int32_t>(), static_cast<int>(per_row)};
}

/// The consecutive pairs of one expert that a block works on.
struct PairTile {
  int expert, first, count;
};

/// Tiles of `rows` pairs each, numbered expert by expert; no tile spans two experts. Which they are is known only on
/// the device: every warp finds its block's tile from the offsets. count is 0 beyond the last tile.
__device__ inline PairTile find_tile(const std::int32_t* offsets, int experts, int rows, int tile) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int first = 0; first < experts; first += 32) {
    const int expert = first + lane;
    const int begin = expert < experts ? offsets[expert] : 0, end = expert < experts ? offsets[expert + 1] : 0;
    const int own = (end - begin + rows - 1) / rows;
    const int sum = warp_running_sum(own);
    const unsigned reached = __ballot_sync(0xffffffffu, before + sum > tile);
    if (reached != 0) {
      const int owner = __ffs(reached) - 1;
      const int index = tile - before - __shfl_sync(0xffffffffu, sum - own, owner);
      const int owner_begin = __shfl_sync(0xffffffffu, begin, owner), owner_end = __shfl_sync(0xffffffffu, end, owner);
      const int start = owner_begin + index * rows;
      return {first + owner, start, min(rows, owner_end - start)};
    }
    before += __shfl_sync(0xffffffffu, sum, 31);
  }
  return {0, 0, 0};
}

/// Upper bound of the number of tiles, known to the host.
inline std::int64_t max_tiles(const ops::RoutingPlan& plan, int rows) {
  return plan.max_pairs() / rows + std::min(plan.experts, plan.max_pairs());
}

/// y[pair] = gate * activation(source[row(pair)] weight[expert] + bias[expert]) for all pairs.
template <class D>
struct PairProduct {
  const D* source;
  RowMap source_rows;
  const D* weight;
  std::int64_t weight_stride_expert, weight_stride_inner, weight_stride_outer;
  const D* bias;   // [experts, outer] or null
  const D* gates;  // in choice order, or null
  const std::int32_t* offsets;
  int experts;
  int inner, outer;  // sizes: source [rows, inner], y [pairs, outer]
  ops::Activation activation;
  D* y;
  // For input gradients, known to launch_pair_product_hopper only. x [pairs, outer] is the input, dots [pairs, column
  // tiles] gets x . product of each tile's columns, before the gate; with through_relu, y is 0 where x is not positive.
  const D* x = nullptr;
  float* dots = nullptr;
  bool through_relu = false;

  __device__ D finish(compute_t<D> sum, int expert, int pair, int column) const {
    if (bias) sum += load(bias + static_cast<std::int64_t>(expert) * outer + column);
    if (activation == ops::Activation::relu) sum = apply_unary<ops::Activation::relu>(sum);
    else if (activation != ops::Activation::identity) sum = apply_rare_unary(activation, sum);
    if (gates) sum *= load(gates + source_rows.pair_to_choice[pair]);
    return convert<D>(sum);
  }
};

/// dweight[e] = sum over the expert's pairs of x[x_row(pair)]^T (gate dy[dy_row(pair)]).
template <class D>
struct WeightGradient {
  const D* x;
  RowMap x_rows;
  const D* dy;
  RowMap dy_rows;
  const D* gates;
  const std::int32_t* offsets;
  int inner, outer;
  D* dweight;  // [experts, inner, outer]

  __device__ compute_t<D> gate(int pair) const {
    return gates ? load(gates + x_rows.pair_to_choice[pair]) : compute_t<D>(1);
  }
};

/// Columns of y that a tile of launch_pair_product_hopper has; 0 where the GPU, the sizes or the activation do not
/// allow that function.
int hopper_tile_columns(const PairProduct<__nv_bfloat16>& product, const Context& ctx);
/// The product by Hopper's matrix instructions, in expert_product_hopper.cu.
void launch_pair_product_hopper(const PairProduct<__nv_bfloat16>& product, std::int64_t max_pairs, const Context& ctx);
// Tensor-core versions for bf16, in expert_matmul_bf16.cu.
void launch_pair_product(const PairProduct<__nv_bfloat16>& product, std::int64_t tiles, cudaStream_t stream);
void launch_weight_gradient(const WeightGradient<__nv_bfloat16>& gradient, int experts, Device device);
/// Pairs a block of launch_pair_product works on.
constexpr int kTensorCoreRows = 128;

}  // namespace switchyard::cuda
