#include "autograd/ops/expert_matmul.h"

#include "autograd/grad_mode.h"
#include "autograd/node.h"

namespace switchyard {
namespace {

struct Wanted {
  bool x, weight, bias, gates;
};

/// Product, weighting and reduction without activation.
Variable linear_part(const Variable& x, const Variable& weight, const Variable& bias, const Variable& gates,
                     const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options, Tensor y,
                     const Tensor& activated) {
  Variables inputs = {x, weight};
  if (bias.defined()) inputs.push_back(bias);
  if (gates.defined()) inputs.push_back(gates);
  const Wanted wanted{x.requires_grad(), weight.requires_grad(), bias.requires_grad(), gates.requires_grad()};
  ops::ExpertMatmulOptions plain = options;
  plain.activation = ops::Activation::identity;
  return record(
      "expert_matmul", std::move(y), inputs,
      [x = x.data(), weight = weight.data(), bias = data_or_none(bias), gates = data_or_none(gates), plan, plain,
       activation = options.activation, activated, wanted](const Tensor& dy_activated) {
        const Tensor dy =
            activated.defined() ? ops::unary_backward(activation, dy_activated, activated) : dy_activated.contiguous();
        Gradients gradients(2);
        Tensor dgates, dbias;
        if (wanted.x || wanted.gates) {
          auto g = ops::expert_matmul_input_backward(dy, x, weight, bias, gates, plan, plain, wanted.x, wanted.gates);
          gradients[0] = g.dx;
          dgates = g.dgates;
        }
        if (wanted.weight || wanted.bias) {
          auto g = ops::expert_matmul_weight_backward(dy, x, gates, plan, plain, wanted.bias);
          gradients[1] = g.dweight;
          dbias = g.dbias;
        }
        if (bias.defined()) gradients.push_back(dbias);
        if (gates.defined()) gradients.push_back(dgates);
        return gradients;
      });
}

}  // namespace

Variable expert_matmul(const Variable& x, const Variable& weight, const Variable& bias, const Variable& gates,
                       const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options) {
  using ops::Activation;
  const Activation activation = options.activation;
  check(activation == Activation::identity || !gates.defined(),
        "expert_matmul: gates and an activation in one call are not differentiable together; apply the gates in the "
        "product that follows");
  const bool recording = grad_enabled();
  if (activation == Activation::identity || activation == Activation::relu || !recording) {
    Tensor y = ops::expert_matmul(x.data(), weight.data(), data_or_none(bias), data_or_none(gates), plan, options);
    const Tensor activated = activation == Activation::relu ? y : Tensor{};
    return linear_part(x, weight, bias, gates, plan, options, y, activated);
  }
  // Other derivatives need the activation's argument, so the epilogue cannot apply it in place.
  ops::ExpertMatmulOptions plain = options;
  plain.activation = Activation::identity;
  const Tensor argument = ops::expert_matmul(x.data(), weight.data(), data_or_none(bias), {}, plan, plain);
  return linear_part(x, weight, bias, gates, plan, options, ops::unary(activation, argument), argument);
}

Variable expert_feed_forward(const Variable& x, const Variable& up, const Variable& bias, const Variable& down,
                             const Variable& gates, const ops::RoutingPlan& plan, ops::Activation activation) {
  using ops::Rows;
  const ops::ExpertMatmulOptions up_options = {Rows::token, Rows::pair, activation};
  ops::ExpertMatmulOptions down_options = {Rows::pair, Rows::token};
  if (activation != ops::Activation::relu)
    return expert_matmul(expert_matmul(x, up, bias, {}, plan, up_options), down, {}, gates, plan, down_options);
  // One node, because the gradient of the hidden values passes through relu where it is computed, not in a pass of its
  // own.
  const Tensor hidden = ops::expert_matmul(x.data(), up.data(), data_or_none(bias), {}, plan, up_options);
  Tensor y = ops::expert_matmul(hidden, down.data(), {}, data_or_none(gates), plan, down_options);
  down_options.input_activation = activation;
  Variables inputs = {x, up, down};
  if (bias.defined()) inputs.push_back(bias);
  if (gates.defined()) inputs.push_back(gates);
  const bool dx_wanted = x.requires_grad(), dup_wanted = up.requires_grad() || bias.requires_grad(),
             ddown_wanted = down.requires_grad(), dgates_wanted = gates.requires_grad();
  return record(
      "expert_feed_forward", std::move(y), inputs,
      [x = x.data(), up = up.data(), down = down.data(), bias = data_or_none(bias), gates = data_or_none(gates), hidden,
       plan, down_options, dx_wanted, dup_wanted, ddown_wanted, dgates_wanted,
       dbias_wanted = bias.requires_grad()](const Tensor& dy_any) {
        const Tensor dy = dy_any.contiguous();
        const ops::ExpertMatmulOptions up_linear = {Rows::token, Rows::pair};
        const ops::ExpertMatmulOptions down_linear = {Rows::pair, Rows::token};
        const auto inner = ops::expert_matmul_input_backward(dy, hidden, down, {}, gates, plan, down_options,
                                                             dx_wanted || dup_wanted, dgates_wanted);
        Gradients gradients(3);
        Tensor dbias;
        if (ddown_wanted)
          gradients[2] = ops::expert_matmul_weight_backward(dy, hidden, gates, plan, down_linear, false).dweight;
        if (dx_wanted)
          gradients[0] = ops::expert_matmul_input_backward(inner.dx, x, up, bias, {}, plan, up_linear, true, false).dx;
        if (dup_wanted) {
          auto weight = ops::expert_matmul_weight_backward(inner.dx, x, {}, plan, up_linear, dbias_wanted);
          gradients[1] = weight.dweight;
          dbias = weight.dbias;
        }
        if (bias.defined()) gradients.push_back(dbias);
        if (gates.defined()) gradients.push_back(inner.dgates);
        return gradients;
      });
}

}  // namespace switchyard
