#pragma once

#include "core/ops/elementwise.h"
#include "nn/transformer.h"

namespace switchyard::nn {

/// Dense blocks as BERT and ViT have them: biases everywhere, no positions in attention.
struct EncoderBlockOptions {
  std::int64_t width = 0;  ///< D
  std::int64_t layers = 1;
  std::int64_t heads = 1;
  std::int64_t hidden = 0;  ///< F; 0 means four times the width
  ops::Activation activation = ops::Activation::gelu;
  NormPlacement norm_placement = NormPlacement::pre;
  double norm_epsilon = 1e-12;
  double dropout = 0;            ///< of what each layer adds
  double attention_dropout = 0;  ///< of attention weights
  Initializer init = init::truncated_normal(0.02);
};

std::vector<std::unique_ptr<TransformerBlock>> dense_encoder_blocks(const EncoderBlockOptions& options,
                                                                    Generator& generator = initial_weights());

/// Transformer encoder: blocks in which every token sees every other, then a last norm (none after post-layernorm
/// blocks). Parameters layers.<i>.*, final_norm.*.
class Encoder : public Module {
 public:
  /// `final_norm` may be null.
  Encoder(std::vector<std::unique_ptr<TransformerBlock>> blocks, std::unique_ptr<Norm> final_norm);

  /// x [B, T, D] -> [B, T, D] and the sum of the blocks' regularisers. padding: bool [B, T], true where there is no
  /// token: no other token sees it, and its own result means nothing; or undefined.
  LayerOutput forward(const Variable& x, const Tensor& padding = {});
  std::int64_t layers() const { return static_cast<std::int64_t>(blocks_.size()); }
  TransformerBlock& block(std::int64_t index) { return *blocks_.at(static_cast<std::size_t>(index)); }

 private:
  std::vector<std::unique_ptr<TransformerBlock>> blocks_;
  std::unique_ptr<Norm> final_norm_;
};

struct ClassifierLoss {
  Variable total;          ///< cross_entropy + regularizer: what to call backward() on
  Variable cross_entropy;  ///< mean over the batch, in nats
  Variable regularizer;    ///< undefined for none
};

/// The loss of logits [B, classes] and their regulariser for labels i64 [B], each of 0..classes-1.
ClassifierLoss classifier_loss(const LayerOutput& logits, const Tensor& labels);

}  // namespace switchyard::nn
