#include "moe/conversion/dynamic_feed_forward.h"

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/expert_matmul.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/shape.h"

namespace switchyard::moe {
namespace {

using ops::Activation;
using ops::Rows;

/// Experts of fewer neurons learn faster as parts of a dense layer, unless there are few tokens: their products are too
/// small, and a row of outputs for each pair of token and expert takes more memory than all activations.
constexpr std::int64_t kFewNeurons = 64, kFewTokens = 16;

void check_tensor(const char* name, const Tensor& tensor, const Shape& shape, DType dtype, bool required) {
  if (!required && !tensor.defined()) return;
  check(tensor.defined(), "DynamicFeedForward: ", name, " is undefined");
  check(tensor.shape() == shape && tensor.dtype() == dtype, "DynamicFeedForward: ", name, " is ", tensor.dtype(), " ",
        tensor.shape(), ", expected ", dtype, " ", shape);
}

const ExpertWeights& checked(const ExpertWeights& weights) {
  check(weights.up.defined() && weights.up.rank() == 3, "DynamicFeedForward: up must be [E, D, S]");
  check(weights.down.defined() && weights.down.rank() == 3, "DynamicFeedForward: down must be [E, S, output width]");
  const std::int64_t experts = weights.experts(), neurons = weights.expert_width(), output = weights.output_width();
  const DType dtype = weights.up.dtype();
  check_tensor("down", weights.down, {experts, neurons, output}, dtype, true);
  check_tensor("up_bias", weights.up_bias, {experts, neurons}, dtype, false);
  check_tensor("gate", weights.gate, {experts, weights.width(), neurons}, dtype, false);
  check_tensor("gate_bias", weights.gate_bias, {experts, neurons}, dtype, false);
  check(weights.gated() || !weights.gate_bias.defined(), "DynamicFeedForward: gate_bias is given without a gate");
  check_tensor("last_bias", weights.last_bias, {output}, dtype, false);
  check(!weights.residual || weights.width() == output,
        "DynamicFeedForward: a residual connection needs as many outputs as inputs, got ", weights.width(),
        " inputs and ", output, " outputs");
  return weights;
}

NormRouterOptions router_for(const ExpertWeights& weights, NormRouterOptions options) {
  options.width = checked(weights).width();
  options.experts = weights.experts();
  return options;
}

}  // namespace

DynamicFeedForward::DynamicFeedForward(const ExpertWeights& weights, Activation activation, NormRouterOptions router,
                                       Generator& generator)
    : activation_(activation), residual_(weights.residual), router_(router_for(weights, router), generator) {
  const auto parameter = [this](const char* name, const Tensor& tensor, bool decays) {
    return tensor.defined() ? register_parameter(name, tensor, decays) : Variable{};
  };
  const auto by_neuron = [&](const char* name, const Tensor& weight) {
    return parameter(name, weight.defined() ? weight.transpose(1, 2).contiguous() : weight, true);
  };
  w1_ = by_neuron("w1", weights.up);
  b1_ = parameter("b1", weights.up_bias, false);
  gate_weight_ = by_neuron("gate", weights.gate);
  gate_bias_ = parameter("gate_bias", weights.gate_bias, false);
  w2_ = parameter("w2", weights.down, true);
  last_bias_ = parameter("last_bias", weights.last_bias, false);
  router_.to(weights.up.dtype());
  register_module("router", router_);
}

nn::LayerOutput DynamicFeedForward::forward(const Variable& x) {
  check(x.rank() == 3 && x.size(2) == w1_.size(2), "DynamicFeedForward: x must be [B, T, ", w1_.size(2), "], got ",
        x.shape());
  const Variable rows = reshape(x, {x.size(0) * x.size(1), x.size(2)});
  if (observer_) observer_(rows.data());
  const bool counts = collect_ && (!training() || grad_enabled()), all = gate_.mode == GateMode::all;
  const auto output = [&](const Variable& y) -> nn::LayerOutput {
    return {reshape(y, {x.size(0), x.size(1), w2_.size(2)}), {}};
  };
  if (!all && !counts && !grad_enabled()) return output(run_chosen(rows));
  Tensor mask;
  if (counts || !all) mask = choose(rows);
  if (counts) statistics_.add(mask);
  return output(all ? completed(output_of(hidden(rows)), rows) : run(rows, mask));
}

Variable DynamicFeedForward::run_chosen(const Variable& rows) const {
  return Variable(ops::routed_feed_forward(rows.data(), router_.before_scores(rows, gate_), weights(), activation_,
                                           data_or_none(last_bias_), residual_));
}

Tensor DynamicFeedForward::choose(const Variable& rows) const {
  const std::int64_t experts = w1_.size(0);
  if (gate_.mode == GateMode::all) return Tensor::full({rows.size(0), experts}, 1, DType::boolean, rows.device());
  const NoGradGuard no_gradients;
  return ops::expert_mask(router_.forward(rows).data(), gate_);
}

Variable DynamicFeedForward::hidden(const Variable& rows) const {
  const std::int64_t neurons = w1_.size(0) * w1_.size(1);
  const auto product = [&](const Variable& weight, const Variable& bias, Activation activation) {
    const Variable matrix = reshape(weight, {neurons, weight.size(2)});
    return linear_activation(rows, matrix, bias.defined() ? reshape(bias, {neurons}) : bias, activation);
  };
  if (!gate_weight_.defined()) return product(w1_, b1_, activation_);
  return product(gate_weight_, gate_bias_, activation_) * product(w1_, b1_, Activation::identity);
}

Variable DynamicFeedForward::output_of(const Variable& hidden) const {
  return matmul(hidden, reshape(w2_, {w2_.size(0) * w2_.size(1), w2_.size(2)}));
}

Variable DynamicFeedForward::run(const Variable& rows, const Tensor& mask, const Variable& gates) const {
  if (!grad_enabled() && !gates.defined()) {
    return Variable(
        ops::masked_feed_forward(rows.data(), weights(), mask, activation_, data_or_none(last_bias_), residual_));
  }
  const bool densely = w1_.size(1) < kFewNeurons && rows.size(0) > kFewTokens;
  return completed(densely ? run_densely(rows, mask, gates) : run_by_expert(rows, mask, gates), rows);
}

Variable DynamicFeedForward::run_by_expert(const Variable& rows, const Tensor& mask, const Variable& gates) const {
  const ops::RoutingPlan plan = ops::routing_plan_from_mask(mask);
  if (!gate_weight_.defined())
    return expert_feed_forward(rows, transpose(w1_, 1, 2), b1_, w2_, gates, plan, activation_);
  const auto neurons = [&](const Variable& weight, const Variable& bias, Activation activation) {
    return expert_matmul(rows, transpose(weight, 1, 2), bias, {}, plan, {Rows::token, Rows::pair, activation});
  };
  const Variable pairs = neurons(gate_weight_, gate_bias_, activation_) * neurons(w1_, b1_, Activation::identity);
  return expert_matmul(pairs, w2_, {}, gates, plan, {Rows::pair, Rows::token, Activation::identity});
}

Variable DynamicFeedForward::run_densely(const Variable& rows, const Tensor& mask, const Variable& gates) const {
  const std::int64_t count = rows.size(0), experts = w1_.size(0), neurons = w1_.size(1);
  const Variable chosen(mask.to(rows.dtype()));
  const Variable factor = gates.defined() ? gates * chosen : chosen;
  const Variable activations = reshape(hidden(rows), {count, experts, neurons}) * reshape(factor, {count, experts, 1});
  return output_of(reshape(activations, {count, experts * neurons}));
}

Variable DynamicFeedForward::completed(const Variable& experts, const Variable& rows) const {
  const Variable y = last_bias_.defined() ? experts + last_bias_ : experts;
  return residual_ ? y + rows : y;
}

void DynamicFeedForward::set_gate(const Gate& gate) {
  ops::check_gate(gate, w1_.size(0));
  gate_ = gate;
}

ExpertWeights DynamicFeedForward::weights() const {
  ExpertWeights weights;
  weights.up = w1_.data().transpose(1, 2);
  weights.up_bias = data_or_none(b1_);
  if (gate_weight_.defined()) weights.gate = gate_weight_.data().transpose(1, 2);
  weights.gate_bias = data_or_none(gate_bias_);
  weights.down = w2_.data();
  weights.last_bias = data_or_none(last_bias_);
  weights.residual = residual_;
  return weights;
}

void DynamicFeedForward::collect(bool on) {
  collect_ = on;
  statistics_.reset();
}

}  // namespace switchyard::moe
