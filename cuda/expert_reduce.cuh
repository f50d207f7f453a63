#pragma once

#include "cuda/expert_matmul.cuh"

namespace switchyard::cuda {

/// Products of pairs, not weighted yet, and what becomes of them. Rows of `out` and choices are numbered by row; with a
/// row per pair, a row is a choice.
template <class D>
struct PairSum {
  const D* products;                   // [pairs, width]
  const std::int32_t* choice_to_pair;  // -1 for a choice not taken
  const D* gates;                      // in choice order, or null
  std::int64_t rows;
  int choices_per_row, width;
  D* out = nullptr;                             // [rows, width]: sums of gate * product, in choice order
  const D* x = nullptr;                         // what dgates needs: [rows, width]
  D* dgates = nullptr;                          // x . product of each choice, 0 for one not taken
  const compute_t<D>* bias_products = nullptr;  // added to that, in choice order

  __device__ void store_gate_gradient(std::int64_t choice, compute_t<D> dot) const {
    dgates[choice] = convert<D>(bias_products ? dot + bias_products[choice] : dot);
  }
};

/// Sums products into rows, and gets the gradients of the gates, each where wanted, in one pass.
template <class D>
void launch_sum_pairs(const PairSum<D>& sum, RowMap x_rows, cudaStream_t stream);

/// Gradients of the gates, where wanted, by a pass of their own. Then, with `weighted`, gate * product goes there (it
/// may be `products`), or 0 where x is not positive and through_relu.
template <class D>
void launch_gate_gradients(const PairSum<D>& sum, RowMap x_rows, bool through_relu, D* weighted, cudaStream_t stream);

/// Gradients of the gates from dots [pairs, tiles] that launch_pair_product_hopper left.
template <class D>
void launch_sum_dots(const PairSum<D>& sum, const float* dots, int tiles, cudaStream_t stream);

/// products[choice] = bias[expert] . dy[row]: the bias's part of the gradients of the gates.
template <class D>
void launch_bias_products(const D* bias, const D* dy, RowMap dy_rows, const PairSum<D>& sum,
                          const std::int32_t* offsets, int experts, int outer, compute_t<D>* products,
                          cudaStream_t stream);

}  // namespace switchyard::cuda
