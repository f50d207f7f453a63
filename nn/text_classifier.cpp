#include "nn/text_classifier.h"

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/shape.h"
#include "core/name_scope.h"
#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"

namespace switchyard::nn {
namespace {

std::unique_ptr<LayerNorm> norm_if(bool wanted, const TextClassifierOptions& options) {
  return wanted ? std::make_unique<LayerNorm>(options.width, options.norm_epsilon) : nullptr;
}

/// Mean over the tokens that are not padding: x [B, T, D] -> [B, D]; 0 for a text without any.
Variable mean_of_tokens(const Variable& x, const Tensor& padding) {
  if (!padding.defined()) return mean(x, {1});
  const Tensor zero = Tensor::scalar(0, x.dtype(), x.device()), one = Tensor::scalar(1, x.dtype(), x.device());
  const Tensor kept = ops::where(padding, zero, one);                                      // [B, T]
  const Tensor count = ops::binary(ops::Binary::maximum, ops::sum(kept, {1}, true), one);  // [B, 1]
  const Variable tokens = where(padding.unsqueeze(2), Variable(zero), x);
  return sum(tokens, {1}) / Variable(count);
}

}  // namespace

TextClassifier::TextClassifier(const TextClassifierOptions& options,
                               std::vector<std::unique_ptr<TransformerBlock>> blocks, Generator& generator)
    : pooling_(options.pooling),
      embedding_(options.vocabulary_size, options.width, options.init, generator),
      position_(options.positions, options.width, options.init, generator),
      segment_(options.segments > 0
                   ? std::make_unique<Embedding>(options.segments, options.width, options.init, generator)
                   : nullptr),
      embedding_norm_(norm_if(options.embedding_norm, options)),
      dropout_(options.dropout),
      encoder_(std::move(blocks), norm_if(options.final_norm, options)),
      pooler_(options.pooler ? std::make_unique<Linear>(options.width, options.width, true, options.init, generator)
                             : nullptr),
      classifier_dropout_(options.classifier_dropout),
      classifier_(options.width, options.classes, true, options.init, generator) {
  register_module("embedding", embedding_);
  register_module("position", position_);
  if (segment_) register_module("segment", *segment_);
  if (embedding_norm_) register_module("embedding_norm", *embedding_norm_);
  register_module("dropout", dropout_);
  register_module("", encoder_);
  if (pooler_) register_module("pooler", *pooler_);
  register_module("classifier_dropout", classifier_dropout_);
  register_module("classifier", classifier_);
}

Variable TextClassifier::embed(const TextBatch& text) const {
  const Tensor& tokens = text.tokens;
  check(tokens.defined() && tokens.rank() == 2 && tokens.dtype() == DType::i64 && tokens.size(1) > 0,
        "TextClassifier: expected tokens i64 [batch, tokens], got ",
        tokens.defined() ? name_of(tokens.dtype()) : "none", " ", tokens.shape());
  check(!text.segments.defined() || (segment_ && text.segments.shape() == tokens.shape()), "TextClassifier: segments ",
        text.segments.shape(), " for tokens ", tokens.shape(), segment_ ? "" : " of a model without segments");
  NameScope scope("embedding");
  Variable x = embedding_.forward(tokens) + position_.forward(tokens.size(1));
  if (segment_) {
    const Tensor first = Tensor::zeros({1, 1}, DType::i64, tokens.device());
    x = x + segment_->forward(text.segments.defined() ? text.segments : first);
  }
  return dropout_.forward(embedding_norm_ ? embedding_norm_->forward(x) : x);
}

LayerOutput TextClassifier::hidden(const TextBatch& text) { return encoder_.forward(embed(text), text.padding); }

Variable TextClassifier::pool(const Variable& hidden, const Tensor& padding) const {
  const Variable pooled = pooling_ == Pooling::mean ? mean_of_tokens(hidden, padding)
                                                    : reshape(slice(hidden, 1, 0, 1), {hidden.size(0), hidden.size(2)});
  return pooler_ ? tanh(pooler_->forward(pooled)) : pooled;
}

LayerOutput TextClassifier::logits(const TextBatch& text) {
  const LayerOutput encoded = hidden(text);
  NameScope scope("classifier");
  const Variable pooled = classifier_dropout_.forward(pool(encoded.output, text.padding));
  return {classifier_.forward(pooled), encoded.regularizer};
}

}  // namespace switchyard::nn
