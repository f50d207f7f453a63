#pragma once

#include "nn/optim/optimizer.h"

namespace switchyard::nn {

struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
};

/// AdamW (Loshchilov & Hutter, 2019): decoupled weight decay, bias-corrected moments.
class AdamW : public Optimizer {
 public:
  AdamW(const std::vector<ParameterGroup>& groups, const AdamWOptions& options = {});

 private:
  void update(std::size_t group, const Tensor& gradient_scale) override;

  struct Moments {
    Tensor first, second;
  };
  AdamWOptions options_;
  std::vector<std::vector<Moments>> moments_;  // by group, then entry
};

}  // namespace switchyard::nn
