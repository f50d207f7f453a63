#include "autograd/ops/loss.h"

#include "autograd/grad_mode.h"
#include "autograd/node.h"
#include "core/ops/elementwise.h"
#include "core/ops/loss.h"

namespace switchyard {

// The gradient is made in the forward pass, while each chunk's logits are at hand; backward only scales it.
Variable linear_cross_entropy(const Variable& x, const Variable& w, const Variable& bias, const Tensor& targets,
                              std::int64_t ignore_index) {
  const bool has_bias = bias.defined();
  const bool wanted = grad_enabled() && (x.requires_grad() || w.requires_grad() || bias.requires_grad());
  const auto result = ops::linear_cross_entropy(x.data(), w.data(), data_or_none(bias), targets, ignore_index, wanted);
  Variables inputs = {x, w};
  if (has_bias) inputs.push_back(bias);
  return record("linear_cross_entropy", result.loss, inputs, [result, has_bias](const Tensor& dloss) {
    const auto scaled = [&](const Tensor& g) { return ops::multiply(g, dloss.to(g.dtype())); };
    Gradients gradients = {scaled(result.dx), scaled(result.dw)};
    if (has_bias) gradients.push_back(scaled(result.dbias));
    return gradients;
  });
}

Variable cross_entropy(const Variable& logits, const Tensor& targets, std::int64_t ignore_index) {
  const bool wanted = grad_enabled() && logits.requires_grad();
  const ops::CrossEntropyResult result = ops::cross_entropy(logits.data(), targets, ignore_index, wanted);
  return record("cross_entropy", result.loss, {logits}, [dlogits = result.dlogits](const Tensor& dloss) {
    return Gradients{ops::multiply(dlogits, dloss.to(dlogits.dtype()))};
  });
}

}  // namespace switchyard
