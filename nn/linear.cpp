#include "nn/linear.h"

#include "autograd/ops/matmul.h"

namespace switchyard::nn {

Linear::Linear(std::int64_t inputs, std::int64_t outputs, bool bias, const Initializer& init, Generator& generator) {
  check(inputs > 0 && outputs > 0, "Linear: ", inputs, " inputs and ", outputs, " outputs, expected at least 1");
  weight_ = register_parameter("weight", init({outputs, inputs}, generator));
  if (bias) bias_ = register_parameter("bias", Tensor::zeros({outputs}), false);
}

Variable Linear::forward(const Variable& x) const { return linear(x, weight_, bias_); }

}  // namespace switchyard::nn
