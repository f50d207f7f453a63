#include "nn/optim/clip.h"

#include "core/ops/optim.h"

namespace switchyard::nn {

ClipResult clip_gradients(const Variables& parameters, double max_norm) {
  check(!parameters.empty(), "clip_gradients: no parameters");
  std::vector<Tensor> gradients;
  for (const Variable& p : parameters)
    if (p.grad().defined()) gradients.push_back(p.grad());
  const Device device = parameters[0].device();
  const Tensor norm = gradients.empty() ? Tensor::zeros({1}, DType::f64, device) : ops::global_norm(gradients);
  const Tensor factor = max_norm > 0 ? ops::clip_factor(norm, max_norm) : Tensor::ones({1}, DType::f64, device);
  return {norm, factor};
}

}  // namespace switchyard::nn
