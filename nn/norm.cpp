#include "nn/norm.h"

#include "autograd/ops/elementwise.h"

namespace switchyard::nn {

AddedNorm Norm::add_forward(const Variable& x, const Variable& addend) const {
  const Variable sum = addend.defined() ? x + addend : x;
  return {sum, forward(sum)};
}

LayerNorm::LayerNorm(std::int64_t width, double epsilon) : epsilon_(epsilon) {
  check(width > 0, "LayerNorm: width ", width, ", expected at least 1");
  weight_ = register_parameter("weight", Tensor::ones({width}), false);
  bias_ = register_parameter("bias", Tensor::zeros({width}), false);
}

Variable LayerNorm::forward(const Variable& x) const { return layer_norm(x, weight_, bias_, epsilon_); }

AddedNorm LayerNorm::add_forward(const Variable& x, const Variable& addend) const {
  return add_layer_norm(x, addend, weight_, bias_, epsilon_);
}

RMSNorm::RMSNorm(std::int64_t width, double epsilon) : epsilon_(epsilon) {
  check(width > 0, "RMSNorm: width ", width, ", expected at least 1");
  weight_ = register_parameter("weight", Tensor::ones({width}), false);
}

Variable RMSNorm::forward(const Variable& x) const { return rms_norm(x, weight_, epsilon_); }

AddedNorm RMSNorm::add_forward(const Variable& x, const Variable& addend) const {
  return add_rms_norm(x, addend, weight_, epsilon_);
}

std::unique_ptr<Norm> make_norm(NormKind kind, std::int64_t width, double epsilon) {
  if (kind == NormKind::layernorm) return std::make_unique<LayerNorm>(width, epsilon);
  return std::make_unique<RMSNorm>(width, epsilon);
}

}  // namespace switchyard::nn
