#pragma once

#include "nn/optim/optimizer.h"

namespace switchyard::nn {

struct SgdOptions {
  double learning_rate = 1e-2;
  double momentum = 0;
};

/// Stochastic gradient descent: v = momentum v + gradient + weight_decay parameter; parameter -= learning_rate v.
class Sgd : public Optimizer {
 public:
  Sgd(const std::vector<ParameterGroup>& groups, const SgdOptions& options = {});

 private:
  void update(std::size_t group, const Tensor& gradient_scale) override;

  SgdOptions options_;
  std::vector<std::vector<Tensor>> momenta_;  // by group, then entry; empty without momentum
};

}  // namespace switchyard::nn
