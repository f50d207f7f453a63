#include "nn/encoder.h"

#include "autograd/ops/elementwise.h"
#include "autograd/ops/loss.h"
#include "core/name_scope.h"
#include "nn/attention.h"
#include "nn/feed_forward.h"

namespace switchyard::nn {

std::vector<std::unique_ptr<TransformerBlock>> dense_encoder_blocks(const EncoderBlockOptions& options,
                                                                    Generator& generator) {
  MultiHeadAttentionOptions attention;
  attention.width = options.width;
  attention.heads = options.heads;
  attention.position.kind = PositionKind::none;
  attention.dropout = options.attention_dropout;
  attention.bias = true;
  attention.init = options.init;
  FeedForwardOptions feed_forward;
  feed_forward.width = options.width;
  feed_forward.hidden = options.hidden;
  feed_forward.activation = options.activation;
  feed_forward.bias = true;
  feed_forward.init = options.init;
  const auto norm = [&] { return std::make_unique<LayerNorm>(options.width, options.norm_epsilon); };
  std::vector<std::unique_ptr<TransformerBlock>> blocks;
  for (std::int64_t layer = 0; layer < options.layers; ++layer) {
    // Named one by one: the weights of a seed must not depend on the compiler's order of evaluating arguments.
    auto attention_layer = std::make_unique<MultiHeadAttention>(attention, generator);
    auto feed_forward_layer = std::make_unique<FeedForward>(feed_forward, generator);
    blocks.push_back(std::make_unique<TransformerBlock>(norm(), std::move(attention_layer), norm(),
                                                        std::move(feed_forward_layer), options.dropout,
                                                        options.norm_placement));
  }
  return blocks;
}

Encoder::Encoder(std::vector<std::unique_ptr<TransformerBlock>> blocks, std::unique_ptr<Norm> final_norm)
    : blocks_(std::move(blocks)), final_norm_(std::move(final_norm)) {
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    check(blocks_[i] != nullptr, "Encoder: block ", i, " is missing");
    register_module("layers." + std::to_string(i), *blocks_[i]);
  }
  if (final_norm_) register_module("final_norm", *final_norm_);
}

LayerOutput Encoder::forward(const Variable& x, const Tensor& padding) {
  check(x.rank() == 3, "Encoder: x is ", x.shape(), ", expected [batch, tokens, width]");
  check(!padding.defined() || (padding.shape() == Shape{x.size(0), x.size(1)} && padding.dtype() == DType::boolean),
        "Encoder: padding is ", padding.dtype(), " ", padding.shape(), ", expected bool ", Shape{x.size(0), x.size(1)});
  BlockArguments arguments;
  arguments.causal = false;
  arguments.key_padding = padding;
  ResidualStream stream{x, {}};
  Variable regularizer;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    NameScope scope("layers." + std::to_string(i));
    regularizer = add_regularizers(regularizer, blocks_[i]->advance(stream, arguments));
  }
  if (!final_norm_) return {stream.total(), regularizer};
  NameScope scope("final_norm");
  return {final_norm_->add_forward(stream.sum, stream.pending).normed, regularizer};
}

ClassifierLoss classifier_loss(const LayerOutput& logits, const Tensor& labels) {
  const Variable entropy = cross_entropy(logits.output, labels);
  if (!logits.regularizer.defined()) return {entropy, entropy, {}};
  return {entropy + cast(logits.regularizer, entropy.dtype()), entropy, logits.regularizer};
}

}  // namespace switchyard::nn
