#pragma once

#include "core/ops/expert_matmul.h"

// Expert products as dense products over all experts; how and when: expert_matmul_dense.cu. Arguments are those of the
// entry points in core/kernels/expert_matmul.h, without bias.
namespace switchyard::cuda {

/// Whether a call is one that the functions below can do, and do faster than a product per pair.
bool dense_product_pays(const Tensor& bias, const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options);

void dense_expert_matmul(const Tensor& x, const Tensor& weight, const Tensor& gates, const ops::RoutingPlan& plan,
                         const ops::ExpertMatmulOptions& options, const Tensor& y);
void dense_expert_matmul_input_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& gates,
                                        const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options,
                                        const Tensor& dx, const Tensor& dgates);
void dense_expert_matmul_weight_backward(const Tensor& dy, const Tensor& x, const Tensor& gates,
                                         const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options,
                                         const Tensor& dweight);

}  // namespace switchyard::cuda
