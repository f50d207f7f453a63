#pragma once

#include "nn/module.h"

namespace switchyard::nn {

/// In training zeroes elements with the given probability and divides the rest by 1 - probability; else returns x.
class Dropout : public Module {
 public:
  explicit Dropout(double probability);
  Variable forward(const Variable& x) const;

 private:
  double probability_;
};

}  // namespace switchyard::nn
