#include "nn/feed_forward.h"

#include "autograd/ops/elementwise.h"

namespace switchyard::nn {
namespace {

std::int64_t hidden_of(const FeedForwardOptions& options) {
  return options.hidden > 0 ? options.hidden : 4 * options.width;
}

}  // namespace

FeedForward::FeedForward(const FeedForwardOptions& options, Generator& generator)
    : activation_(options.activation),
      up_(options.width, hidden_of(options), options.bias, options.init, generator),
      gate_(options.gated
                ? std::make_unique<Linear>(options.width, hidden_of(options), options.bias, options.init, generator)
                : nullptr),
      down_(hidden_of(options), options.width, options.bias, options.init, generator) {
  register_module("up", up_);
  if (gate_) register_module("gate", *gate_);
  register_module("down", down_);
}

LayerOutput FeedForward::forward(const Variable& x) {
  if (!gate_) return {down_.forward(activate(activation_, up_.forward(x))), {}};
  return {down_.forward(activate(activation_, gate_->forward(x)) * up_.forward(x)), {}};
}

}  // namespace switchyard::nn
