#include "autograd/ops/routing.h"

#include "autograd/node.h"

namespace switchyard {

Variable expert_gates(const Variable& scores, const Tensor& indices, ops::GateFunction function, DType dtype) {
  return record("expert_gates", ops::expert_gates(scores.data(), indices, function, dtype), {scores},
                [scores = scores.data(), indices, function](const Tensor& dy) {
                  return Gradients{ops::expert_gates_backward(dy, scores, indices, function)};
                });
}

Variable negative_selection_entropy(const Variable& scores) {
  const ops::MeanSelection selection = ops::mean_selection(scores.data());
  return record("negative_selection_entropy", selection.negative_entropy, {scores},
                [scores = scores.data(), mean = selection.mean](const Tensor& dy) {
                  return Gradients{ops::mean_selection_backward(dy, scores, mean)};
                });
}

}  // namespace switchyard
