#pragma once

#include "nn/init.h"
#include "nn/module.h"

namespace switchyard::nn {

/// y = x weight^T + bias: x [..., inputs] -> [..., outputs]. Parameters weight [outputs, inputs], bias [outputs]
/// (starts at 0; absent without `bias`).
class Linear : public Module {
 public:
  Linear(std::int64_t inputs, std::int64_t outputs, bool bias = true, const Initializer& init = init::fan_in_normal(),
         Generator& generator = initial_weights());

  Variable forward(const Variable& x) const;
  const Variable& weight() const { return weight_; }
  const Variable& bias() const { return bias_; }

 private:
  Variable weight_, bias_;
};

}  // namespace switchyard::nn
