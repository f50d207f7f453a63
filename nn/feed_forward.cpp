#include "nn/feed_forward.h"

#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/shape.h"

namespace switchyard::nn {
namespace {

using ops::Activation;

std::int64_t hidden_of(const FeedForwardOptions& options) {
  return options.hidden > 0 ? options.hidden : 4 * options.width;
}

std::int64_t outputs_of(const FeedForwardOptions& options) {
  const std::int64_t outputs = options.outputs > 0 ? options.outputs : options.width;
  check(!options.residual || outputs == options.width,
        "FeedForward: a residual connection needs as many outputs as inputs, got ", options.width, " inputs and ",
        outputs, " outputs");
  return outputs;
}

/// x (where there is one) with `extra` zeros at the end of one axis.
Variable padded(const Variable& x, std::int64_t axis, std::int64_t extra) {
  if (!x.defined() || extra == 0) return x;
  Shape shape = x.shape();
  shape[axis] = extra;
  return concat({x, Variable(Tensor::zeros(shape, x.dtype(), x.device()))}, axis);
}

/// The first `count` channels of x [..., F], where there is an x.
Variable without_padding(const Variable& x, std::int64_t count) {
  return x.defined() && x.size(-1) > count ? slice(x, x.rank() - 1, 0, count) : x;
}

}  // namespace

FeedForward::FeedForward(const FeedForwardOptions& options, Generator& generator)
    : activation_(options.activation),
      residual_(options.residual),
      up_(options.width, hidden_of(options), options.bias, options.init, generator),
      gate_(options.gated
                ? std::make_unique<Linear>(options.width, hidden_of(options), options.bias, options.init, generator)
                : nullptr),
      down_(hidden_of(options), outputs_of(options), options.bias, options.init, generator) {
  register_module("up", up_);
  if (gate_) register_module("gate", *gate_);
  register_module("down", down_);
}

LayerOutput FeedForward::forward(const Variable& x) {
  // Tensor cores want sizes that are multiples of eight: other hidden sizes get neurons of zeros, which change nothing.
  const std::int64_t extra = x.dtype() == DType::bf16 ? (8 - down_.weight().size(1) % 8) % 8 : 0;
  const auto hidden = [&](const Linear& layer, Activation activation) {
    return linear_activation(x, padded(layer.weight(), 0, extra), padded(layer.bias(), 0, extra), activation);
  };
  const Linear& first = gate_ ? *gate_ : up_;
  Variable sums, regularizer;
  if (observer_ && activation_ != Activation::relu) sums = hidden(first, Activation::identity);
  Variable neurons = sums.defined() ? activate(activation_, sums) : hidden(first, activation_);
  if (observer_) {
    const std::int64_t count = down_.weight().size(1);
    regularizer = observer_({without_padding(sums, count), without_padding(neurons, count)});
  }
  if (gate_) neurons = neurons * hidden(up_, Activation::identity);
  const Variable y = linear(neurons, padded(down_.weight(), 1, extra), down_.bias());
  return {residual_ ? x + y : y, regularizer};
}

}  // namespace switchyard::nn
