#pragma once

#include <functional>
#include <memory>

#include "core/ops/elementwise.h"
#include "nn/layer.h"
#include "nn/linear.h"

namespace switchyard::nn {

struct FeedForwardOptions {
  std::int64_t width = 0;    ///< D
  std::int64_t hidden = 0;   ///< F; 0 means four times the width
  std::int64_t outputs = 0;  ///< M; 0 means the width
  ops::Activation activation = ops::Activation::relu;
  bool gated = false;  ///< GLU form (Shazeer, 2020)
  bool bias = false;
  bool residual = false;  ///< adds the input; needs M = D
  Initializer init = init::fan_in_normal();
};

/// The neurons of a feed-forward at work on x [..., D]; of a gated one, those of the gate.
struct Neurons {
  Variable sums;         ///< [..., F] what goes into the activation; undefined for relu, whose result tells as much
  Variable activations;  ///< [..., F]
};
/// Looks at neurons as they pass, and may return a regulariser: a weighted scalar, undefined for none.
using NeuronObserver = std::function<Variable(const Neurons&)>;

/// Two-layer perceptron: activation(x up^T) down^T, or gated: (activation(x gate^T) * (x up^T)) down^T, plus x with
/// `residual`. Parameters up.weight, gate.weight [F, D] and down.weight [M, F], each with a bias where wanted.
class FeedForward : public FeedForwardLayer {
 public:
  explicit FeedForward(const FeedForwardOptions& options, Generator& generator = initial_weights());

  LayerOutput forward(const Variable& x) override;
  ops::Activation activation() const { return activation_; }
  bool residual() const { return residual_; }
  void set_activation(ops::Activation activation) { activation_ = activation; }
  /// Called by every forward from now on; what it returns becomes the layer's regulariser. An empty one ends that.
  void set_observer(NeuronObserver observer) { observer_ = std::move(observer); }
  const Linear& up() const { return up_; }
  const Linear* gate() const { return gate_.get(); }  ///< null unless gated
  const Linear& down() const { return down_; }

 private:
  ops::Activation activation_;
  bool residual_;
  NeuronObserver observer_;
  Linear up_;
  std::unique_ptr<Linear> gate_;  // null unless gated
  Linear down_;
};

}  // namespace switchyard::nn
