#include "core/ops/expert_matmul.h"

#include "core/kernels/expert_matmul.h"
#include "core/ops/dispatch.h"

namespace switchyard::ops {

namespace {

std::string_view name_of(Rows rows) {
  switch (rows) {
    case Rows::token: return "token";
    case Rows::row: return "row";
    case Rows::pair: return "pair";
  }
  return "?";
}

std::int64_t row_count(const RoutingPlan& plan, Rows rows) {
  switch (rows) {
    case Rows::token: return plan.tokens;
    case Rows::row: return plan.rows();
    case Rows::pair: return plan.max_pairs();
  }
  return 0;
}

void check_operand(const char* op, const char* name, const Tensor& x, const Tensor& reference) {
  check(x.defined(), op, ": ", name, " is undefined");
  check(is_floating(x.dtype()) && x.dtype() == reference.dtype(), op, ": ", name, " is ", x.dtype(), ", expected ",
        is_floating(reference.dtype()) ? switchyard::name_of(reference.dtype()) : "a floating dtype");
  check(x.device() == reference.device(), op, ": ", name, " is on ", x.device(), ", expected ", reference.device());
}

void check_rows(const char* op, const char* name, const Tensor& x, Rows rows, const RoutingPlan& plan) {
  check(x.rank() == 2 && x.size(0) == row_count(plan, rows), op, ": ", name, " has shape ", x.shape(), ", expected [",
        row_count(plan, rows), ", width] for one row per ", name_of(rows));
  check(x.device() == plan.expert_offsets.device(), op, ": ", name, " is on ", x.device(), ", the routing plan on ",
        plan.expert_offsets.device(), ", expected one device");
}

void check_gates(const char* op, const Tensor& gates, const Tensor& reference, const RoutingPlan& plan) {
  if (!gates.defined()) return;
  check_operand(op, "gates", gates, reference);
  const bool by_row = gates.rank() == 3 && gates.size(0) == plan.tokens && gates.size(1) == plan.slots;
  const bool by_token = gates.rank() == 2 && gates.size(0) == plan.tokens && plan.slots == 1;
  check((by_row || by_token) && gates.size(-1) == plan.choices, op, ": gates have shape ", gates.shape(),
        ", expected [", plan.tokens, ", ", plan.slots, ", ", plan.choices, "]");
}

void check_weight(const char* op, const Tensor& weight, const Tensor& bias, const Tensor& reference,
                  const RoutingPlan& plan) {
  check_operand(op, "weight", weight, reference);
  check(weight.rank() == 3 && weight.size(0) == plan.experts, op, ": weight has shape ", weight.shape(), ", expected [",
        plan.experts, ", K, M]");
  if (!bias.defined()) return;
  check_operand(op, "bias", bias, reference);
  check(bias.shape() == Shape({plan.experts, weight.size(2)}), op, ": bias has shape ", bias.shape(), ", expected ",
        Shape{plan.experts, weight.size(2)});
}

/// Weights whose last two axes are a plain or a transposed dense matrix are used in place.
Tensor matrix_dense(const Tensor& weight) {
  const bool rows = weight.stride(2) == 1 && weight.stride(1) >= weight.size(2);
  const bool columns = weight.stride(1) == 1 && weight.stride(2) >= weight.size(1);
  return rows || columns ? weight : weight.contiguous();
}

/// Operations of one product per pair, x row times matrix [inner, outer]. Where a mask decides, not all pairs exist.
double product_flops(const RoutingPlan& plan, std::int64_t inner, std::int64_t outer) {
  return 2.0 * static_cast<double>(plan.max_pairs()) * static_cast<double>(inner * outer);
}

}  // namespace

Tensor expert_matmul(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                     const RoutingPlan& plan, const ExpertMatmulOptions& options) {
  constexpr const char* kOp = "expert_matmul";
  check_operand(kOp, "x", x, x);
  check_rows(kOp, "x", x, options.input, plan);
  check_weight(kOp, weight, bias, x, plan);
  check_gates(kOp, gates, x, plan);
  check(weight.size(1) == x.size(1), kOp, ": inner sizes differ: x ", x.shape(), ", weight ", weight.shape());
  check(options.activation == Activation::identity || options.output == Rows::pair, kOp, ": activation ",
        ops::name_of(options.activation), " needs one output row per pair, not per ", name_of(options.output));
  const Tensor y = Tensor::empty({row_count(plan, options.output), weight.size(2)}, x.dtype(), x.device());
  if (y.numel() == 0) return y;
  SWITCHYARD_DISPATCH_COUNTED(product_flops(plan, x.size(1), y.size(1)), x.device(), expert_matmul, x.contiguous(),
                              matrix_dense(weight), dense(bias), dense(gates), plan, options, y);
  return y;
}

ExpertMatmulGradients expert_matmul_input_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                   const Tensor& bias, const Tensor& gates, const RoutingPlan& plan,
                                                   const ExpertMatmulOptions& options, bool dx_wanted,
                                                   bool dgates_wanted) {
  constexpr const char* kOp = "expert_matmul_input_backward";
  check_operand(kOp, "x", x, x);
  check_rows(kOp, "x", x, options.input, plan);
  check_weight(kOp, weight, bias, x, plan);
  check_gates(kOp, gates, x, plan);
  check_operand(kOp, "dy", dy, x);
  check_rows(kOp, "dy", dy, options.output, plan);
  check(weight.size(1) == x.size(1) && weight.size(2) == dy.size(1), kOp, ": weight has shape ", weight.shape(),
        ", expected [", plan.experts, ", ", x.size(1), ", ", dy.size(1), "] for x ", x.shape(), " and dy ", dy.shape());
  check(options.activation == Activation::identity, kOp, ": takes activation identity, got ",
        ops::name_of(options.activation));
  check(options.input_activation == Activation::identity ||
            (options.input_activation == Activation::relu && options.input == Rows::pair),
        kOp, ": input activation ", ops::name_of(options.input_activation), " with an input row per ",
        name_of(options.input), ", expected relu with a row per pair, or identity");
  ExpertMatmulGradients gradients;
  if (dx_wanted) gradients.dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (dgates_wanted && gates.defined()) gradients.dgates = Tensor::empty(gates.shape(), gates.dtype(), gates.device());
  if (!gradients.dx.defined() && !gradients.dgates.defined()) return gradients;
  SWITCHYARD_DISPATCH_COUNTED(product_flops(plan, x.size(1), dy.size(1)), x.device(), expert_matmul_input_backward,
                              dy.contiguous(), x.contiguous(), matrix_dense(weight), dense(bias), dense(gates), plan,
                              options, gradients.dx, gradients.dgates);
  return gradients;
}

ExpertMatmulWeightGradients expert_matmul_weight_backward(const Tensor& dy, const Tensor& x, const Tensor& gates,
                                                          const RoutingPlan& plan, const ExpertMatmulOptions& options,
                                                          bool dbias_wanted) {
  constexpr const char* kOp = "expert_matmul_weight_backward";
  check_operand(kOp, "x", x, x);
  check_rows(kOp, "x", x, options.input, plan);
  check_operand(kOp, "dy", dy, x);
  check_rows(kOp, "dy", dy, options.output, plan);
  check_gates(kOp, gates, x, plan);
  check(options.activation == Activation::identity, kOp, ": takes activation identity, got ",
        ops::name_of(options.activation));
  ExpertMatmulWeightGradients gradients;
  gradients.dweight = Tensor::empty({plan.experts, x.size(1), dy.size(1)}, x.dtype(), x.device());
  if (dbias_wanted) gradients.dbias = Tensor::empty({plan.experts, dy.size(1)}, x.dtype(), x.device());
  if (gradients.dweight.numel() == 0 && (!dbias_wanted || gradients.dbias.numel() == 0)) return gradients;
  SWITCHYARD_DISPATCH_COUNTED(product_flops(plan, x.size(1), dy.size(1)), x.device(), expert_matmul_weight_backward,
                              dy.contiguous(), x.contiguous(), dense(gates), plan, options, gradients.dweight,
                              gradients.dbias);
  return gradients;
}

}  // namespace switchyard::ops
