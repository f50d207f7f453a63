#include "autograd/ops/expert_matmul.h"

#include "autograd/grad_mode.h"
#include "autograd/node.h"

namespace switchyard {
namespace {

Tensor data_or_none(const Variable& v) { return v.defined() ? v.data() : Tensor{}; }

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

}  // namespace switchyard
