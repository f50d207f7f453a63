#pragma once

#include "nn/init.h"
#include "nn/module.h"

namespace switchyard::nn {

/// Rows of a trained table: ids (i64, any shape) in 0..count-1 -> [..., width]. Parameter weight [count, width].
class Embedding : public Module {
 public:
  Embedding(std::int64_t count, std::int64_t width, const Initializer& init = init::normal(0.02),
            Generator& generator = initial_weights());

  Variable forward(const Tensor& ids) const;
  const Variable& weight() const { return weight_; }

 private:
  Variable weight_;
};

}  // namespace switchyard::nn
