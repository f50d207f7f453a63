#include "core/ops/masked_feed_forward.h"

#include <algorithm>

#include "core/kernels/decode_experts.h"
#include "core/kernels/masked_feed_forward.h"
#include "core/ops/dispatch.h"
#include "core/ops/expert_matmul.h"
#include "core/ops/matmul.h"

namespace switchyard::ops {
namespace {

constexpr const char* kOp = "masked_feed_forward";
// Up to how many tokens a GPU best reads the weights for each of them; up to how many tokens, and below how many
// neurons of an expert, its products are too small to be worth gathering its tokens; and from how many tokens on it
// pays then, on a GPU, to put them in order.
constexpr std::int64_t kDecodedTokens = 2, kFewTokens = 16, kFewNeurons = 64, kManyTokens = 32768;
// Of small experts: from which share of them on the CPU computes all, as dense products.
constexpr double kDenseShare = 0.45;

void check_weight(const char* op, const char* name, const Tensor& weight, const Shape& shape, const Tensor& x,
                  bool required) {
  if (!required && !weight.defined()) return;
  check(weight.defined(), op, ": ", name, " is undefined");
  check(weight.shape() == shape, op, ": ", name, " has shape ", weight.shape(), ", expected ", shape);
  check(weight.dtype() == x.dtype() && weight.device() == x.device(), op, ": ", name, " is ", weight.dtype(), " on ",
        weight.device(), ", expected ", x.dtype(), " on ", x.device(), " as x");
}

void check_operands(const Tensor& x, const ExpertLayer& layer, const Tensor& mask) {
  check_expert_layer(kOp, x, layer);
  const Shape shape = {x.size(0), layer.experts()};
  check(mask.defined(), kOp, ": the mask must be bool ", shape, ", got an undefined tensor");
  check(mask.dtype() == DType::boolean && mask.shape() == shape && mask.device() == x.device(), kOp,
        ": the mask must be bool ", shape, " on ", x.device(), ", got ", mask.dtype(), " ", mask.shape(), " on ",
        mask.device());
}

/// The share of experts that is chosen; on the CPU, where looking at the mask waits for nobody.
double chosen_share(const Tensor& mask) {
  const Tensor dense = mask.contiguous();
  const bool* chosen = dense.data<bool>();
  return static_cast<double>(std::count(chosen, chosen + dense.numel(), true)) / static_cast<double>(dense.numel());
}

/// On the CPU, by tokens and experts without a plan.
Tensor directly(const Tensor& x, const ExpertLayer& layer, const Tensor& mask, Activation activation,
                const Tensor& bias, bool residual) {
  const Tensor y = Tensor::empty({x.size(0), layer.output_width()}, x.dtype(), x.device());
  if (y.numel() == 0) return y;
  const ProfileScope scope(kOp);
  const Tensor rows = x.contiguous();
  cpu::masked_feed_forward(rows, by_neuron(layer), mask.contiguous(), activation, dense(bias),
                           residual ? rows : Tensor{}, y);
  return y;
}

Tensor decode(const Tensor& x, const ExpertLayer& layer, const Tensor& mask, Activation activation) {
  const Tensor y = Tensor::empty({x.size(0), layer.output_width()}, x.dtype(), x.device());
  if (y.numel() == 0) return y;
  const ProfileScope scope(kOp);
  cuda::decode_masked(x.contiguous(), by_neuron(layer), mask.contiguous(), activation, y);
  return y;
}

/// By blocks of tokens and neurons; undefined where the GPU or the operands do not allow that.
Tensor by_blocks(const Tensor& x, const ExpertLayer& layer, const Tensor& mask, Activation activation) {
  if (layer.gate.defined()) return {};
  const Tensor rows = x.contiguous();
  const ExpertLayer plain = by_neuron(layer);
  if (!cuda::block_feed_forward_fits(rows, plain, activation)) return {};
  const Tensor y = Tensor::empty({x.size(0), layer.down.size(2)}, x.dtype(), x.device());
  const Tensor hidden = Tensor::empty({x.size(0), layer.up.size(0) * layer.up.size(2)}, x.dtype(), x.device());
  const ProfileScope scope(kOp);
  cuda::block_feed_forward(rows, plain, mask.contiguous(), activation, hidden, y);
  return y;
}

/// The neurons of a layer, of which product(weight, bias, function) gives function(x weight + bias).
template <class Product>
Tensor neurons_by(const Product& product, const ExpertLayer& layer, Activation activation) {
  if (!layer.gated()) return product(layer.up, layer.up_bias, activation);
  const Tensor hidden = product(layer.up, layer.up_bias, Activation::identity);
  return multiply(product(layer.gate, layer.gate_bias, activation), hidden);
}

/// All experts for all tokens; then the neurons that the mask leaves out become 0.
Tensor all_experts(const Tensor& x, const ExpertLayer& layer, const Tensor& mask, Activation activation) {
  const Tensor hidden = all_neurons(x, layer, activation);
  if (hidden.numel() > 0) SWITCHYARD_DISPATCH(x.device(), keep_chosen, hidden, mask.contiguous());
  return matmul(hidden, layer.down.reshape({hidden.size(1), layer.output_width()}));
}

Tensor by_plan(const Tensor& x, const ExpertLayer& layer, const Tensor& mask, Activation activation) {
  const RoutingPlan plan = routing_plan_from_mask(mask);
  const auto product = [&](const Tensor& weight, const Tensor& bias, Activation function) {
    return expert_matmul(x, weight, bias, {}, plan,
                         {Rows::token, Rows::pair, function, Activation::identity, /*clear_missing=*/false});
  };
  return expert_matmul(neurons_by(product, layer, activation), layer.down, {}, {}, plan, {Rows::pair, Rows::token});
}

}  // namespace

void check_expert_layer(const char* op, const Tensor& x, const ExpertLayer& layer) {
  check(x.defined(), op, ": x must be floating [N, D], got an undefined tensor");
  check(x.rank() == 2 && is_floating(x.dtype()), op, ": x must be floating [N, D], got ", x.dtype(), " ", x.shape());
  check(layer.up.defined() && layer.up.rank() == 3, op, ": up must be [E, D, S]");
  check(layer.down.defined() && layer.down.rank() == 3, op, ": down must be [E, S, M]");
  const std::int64_t experts = layer.experts(), neurons = layer.expert_width();
  check_weight(op, "up", layer.up, {experts, x.size(1), neurons}, x, true);
  check_weight(op, "up_bias", layer.up_bias, {experts, neurons}, x, false);
  check_weight(op, "gate", layer.gate, layer.up.shape(), x, false);
  check_weight(op, "gate_bias", layer.gate_bias, {experts, neurons}, x, false);
  check_weight(op, "down", layer.down, {experts, neurons, layer.output_width()}, x, true);
  check(layer.gate.defined() || !layer.gate_bias.defined(), op, ": gate_bias is given without a gate");
}

void check_completion(const char* op, const Tensor& x, const ExpertLayer& layer, const Tensor& bias, bool residual) {
  const std::int64_t outputs = layer.output_width();
  check_weight(op, "the bias", bias, {outputs}, x, false);
  check(!residual || outputs == x.size(1), op, ": a residual connection needs as many outputs as inputs, got ", outputs,
        " and ", x.size(1));
}

bool is_decoding(const Tensor& x) { return x.device().is_cuda() && x.size(0) <= kDecodedTokens; }

ExpertLayer by_neuron(const ExpertLayer& layer) {
  const auto rows = [](const Tensor& weight) {
    return weight.defined() ? weight.transpose(1, 2).contiguous().transpose(1, 2) : weight;
  };
  return {rows(layer.up), dense(layer.up_bias), rows(layer.gate), dense(layer.gate_bias), dense(layer.down)};
}

Tensor masked_feed_forward(const Tensor& x, const ExpertLayer& layer, const Tensor& mask, Activation activation,
                           const Tensor& bias, bool residual) {
  check_operands(x, layer, mask);
  check_completion(kOp, x, layer, bias, residual);
  const bool few = x.size(0) <= kFewTokens, small = few || layer.expert_width() < kFewNeurons;
  if (!x.device().is_cuda() && small && (few || chosen_share(mask) < kDenseShare))
    return directly(x, layer, mask, activation, bias, residual);
  Tensor y;
  if (is_decoding(x)) y = decode(x, layer, mask, activation);
  else if (!small) y = by_plan(x, layer, mask, activation);
  else if (x.size(0) >= kManyTokens) y = by_blocks(x, layer, mask, activation);
  if (!y.defined()) y = all_experts(x, layer, mask, activation);
  if (bias.defined()) y = add(y, bias);
  return residual ? add(y, x) : y;
}

Tensor all_neurons(const Tensor& x, const ExpertLayer& layer, Activation activation, std::optional<DType> out_dtype) {
  check_expert_layer("all_neurons", x, layer);
  const std::int64_t neurons = layer.experts() * layer.expert_width();
  const auto product = [&](const Tensor& weight, const Tensor& bias, Activation function) {
    const Tensor matrix = weight.transpose(1, 2).reshape({neurons, layer.width()});
    return linear(x, matrix, bias.defined() ? bias.reshape({neurons}) : bias, out_dtype, function);
  };
  return neurons_by(product, layer, activation);
}

}  // namespace switchyard::ops
