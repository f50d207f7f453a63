#pragma once

#include <array>
#include <string_view>

#include "nn/encoder.h"
#include "nn/linear.h"

namespace switchyard::nn {

/// What a text is summed up by: its first token, or the mean of its tokens.
enum class Pooling : std::uint8_t { first_token, mean };

constexpr auto names_of(Pooling) { return std::array<std::string_view, 2>{"first_token", "mean"}; }

struct TextClassifierOptions {
  std::int64_t vocabulary_size = 0;
  std::int64_t positions = 512;  ///< the longest text
  std::int64_t segments = 2;     ///< kinds of token, such as question and answer; 0 for no segment embedding
  std::int64_t classes = 0;
  std::int64_t width = 0;
  double norm_epsilon = 1e-12;
  bool embedding_norm = true;  ///< a layernorm of the summed embeddings
  bool final_norm = false;     ///< a layernorm after the last block, wanted by pre-layernorm blocks
  Pooling pooling = Pooling::first_token;
  bool pooler = true;             ///< tanh of a linear map after pooling
  double dropout = 0;             ///< of the embeddings
  double classifier_dropout = 0;  ///< of what the classifier sees
  Initializer init = init::truncated_normal(0.02);
};

/// Texts of one length, shorter ones filled up.
struct TextBatch {
  Tensor tokens;    ///< i64 [B, T]; where there is no token, any id of the vocabulary
  Tensor segments;  ///< i64 [B, T]; undefined means segment 0 throughout
  Tensor padding;   ///< bool [B, T], true where there is no token; or undefined
};

/// BERT-style classifier (Devlin et al., 2019): the sum of token, position and segment embeddings, a norm, an encoder,
/// pooling, a linear map to the classes. The defaults, with post-layernorm blocks, are BERT. Parameters
/// embedding.weight [V, D], position.weight [positions, D], segment.weight [segments, D], embedding_norm.*,
/// layers.<i>.*, final_norm.*, pooler.weight [D, D], pooler.bias, classifier.weight [classes, D], classifier.bias, as
/// far as wanted.
class TextClassifier : public Module {
 public:
  TextClassifier(const TextClassifierOptions& options, std::vector<std::unique_ptr<TransformerBlock>> blocks,
                 Generator& generator = initial_weights());

  /// The encoder's output [B, T, D] and the sum of the blocks' regularisers. Throws Error for texts longer than the
  /// position table and for tensors whose shape or dtype is not TextBatch's.
  LayerOutput hidden(const TextBatch& text);
  /// [B, classes]. What stands at padded places changes nothing.
  LayerOutput logits(const TextBatch& text);
  /// Labels i64 [B].
  ClassifierLoss loss(const TextBatch& text, const Tensor& labels) { return classifier_loss(logits(text), labels); }
  Encoder& encoder() { return encoder_; }

 private:
  Variable embed(const TextBatch& text) const;
  /// hidden [B, T, D] -> [B, D].
  Variable pool(const Variable& hidden, const Tensor& padding) const;

  Pooling pooling_;
  Embedding embedding_;
  LearnedPositions position_;
  std::unique_ptr<Embedding> segment_;         // null without segments
  std::unique_ptr<LayerNorm> embedding_norm_;  // null where not wanted
  Dropout dropout_;
  Encoder encoder_;
  std::unique_ptr<Linear> pooler_;  // null where not wanted
  Dropout classifier_dropout_;
  Linear classifier_;
};

}  // namespace switchyard::nn
