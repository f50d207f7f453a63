#pragma once

#include <memory>

#include "core/ops/elementwise.h"
#include "nn/layer.h"
#include "nn/linear.h"

namespace switchyard::nn {

struct FeedForwardOptions {
  std::int64_t width = 0;
  std::int64_t hidden = 0;  ///< F; 0 means four times the width
  ops::Activation activation = ops::Activation::relu;
  bool gated = false;  ///< GLU form (Shazeer, 2020)
  bool bias = false;
  Initializer init = init::fan_in_normal();
};

/// Two-layer perceptron: activation(x up^T) down^T, or gated: (activation(x gate^T) * (x up^T)) down^T. Parameters
/// up.weight, gate.weight [F, D] and down.weight [D, F], each with a bias where wanted.
class FeedForward : public FeedForwardLayer {
 public:
  explicit FeedForward(const FeedForwardOptions& options, Generator& generator = initial_weights());

  LayerOutput forward(const Variable& x) override;
  ops::Activation activation() const { return activation_; }
  const Linear& up() const { return up_; }
  const Linear* gate() const { return gate_.get(); }  ///< null unless gated
  const Linear& down() const { return down_; }

 private:
  ops::Activation activation_;
  Linear up_;
  std::unique_ptr<Linear> gate_;  // null unless gated
  Linear down_;
};

}  // namespace switchyard::nn
