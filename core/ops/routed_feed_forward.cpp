#include "core/ops/routed_feed_forward.h"

#include "core/kernels/decode_experts.h"
#include "core/ops/dispatch.h"
#include "core/ops/matmul.h"
#include "core/ops/norm.h"

namespace switchyard::ops {
namespace {

constexpr const char* kOp = "routed_feed_forward";

void check_operand(const char* name, const Tensor& tensor, const Shape& shape, const Tensor& x) {
  check(tensor.defined(), kOp, ": ", name, " must be ", x.dtype(), " ", shape, ", got an undefined tensor");
  check(tensor.shape() == shape && tensor.dtype() == x.dtype() && tensor.device() == x.device(), kOp, ": ", name,
        " must be ", x.dtype(), " ", shape, " on ", x.device(), ", got ", tensor.dtype(), " ", tensor.shape(), " on ",
        tensor.device());
}

void check_operands(const Tensor& x, const ExpertRouter& router, const ExpertLayer& layer, const Tensor& bias,
                    bool residual) {
  check_expert_layer(kOp, x, layer);
  check_completion(kOp, x, layer, bias, residual);
  const std::int64_t experts = layer.experts();
  check(router.weight.defined() && router.weight.rank() == 2, kOp, ": the router's weight must be [E, H]");
  const std::int64_t width = router.weight.size(1);
  check_operand("the router's hidden values", router.hidden, {x.size(0), width}, x);
  check_operand("the router's weight", router.weight, {experts, width}, x);
  if (router.bias.defined()) check_operand("the router's bias", router.bias, {experts}, x);
  check_gate(router.gate, experts);
}

Tensor decode(const Tensor& x, const ExpertRouter& router, const ExpertLayer& layer, Activation activation,
              const Tensor& bias, bool residual) {
  const Tensor y = Tensor::empty({x.size(0), layer.output_width()}, x.dtype(), x.device());
  if (y.numel() == 0) return y;
  const ExpertRouter plain{dense(router.hidden), dense(router.weight), dense(router.bias), router.activation,
                           router.gate};
  const Tensor rows = x.contiguous();
  const ProfileScope scope(kOp);
  cuda::decode_routed(rows, by_neuron(layer), plain, activation, dense(bias), residual ? rows : Tensor{}, y);
  return y;
}

}  // namespace

Tensor routed_feed_forward(const Tensor& x, const ExpertRouter& router, const ExpertLayer& layer, Activation activation,
                           const Tensor& bias, bool residual) {
  check_operands(x, router, layer, bias, residual);
  if (is_decoding(x) && router.gate.mode != GateMode::all) return decode(x, router, layer, activation, bias, residual);
  const Tensor scores = linear(router.hidden, router.weight, router.bias, compute_dtype(x.dtype()), router.activation);
  return masked_feed_forward(x, layer, expert_mask(scores, router.gate), activation, bias, residual);
}

}  // namespace switchyard::ops
