#pragma once

#include <array>
#include <string_view>

#include "nn/dropout.h"
#include "nn/embedding.h"
#include "nn/layer.h"
#include "nn/norm.h"
#include "nn/position.h"

namespace switchyard::nn {

/// How one call of a block differs from plain training.
struct BlockArguments {
  Tensor memory;  ///< [B, M, D] inputs of this block for the M tokens before x, or undefined: a past to attend to
  KeyValueCache* cache = nullptr;
  bool causal = true;
  Tensor key_padding;  ///< bool [B, S] over the tokens attended to, true hides one; or undefined
  AttentionInspection* inspection = nullptr;
};

/// What runs through the blocks, x = sum + pending: each norm does the addition left over by the layer before it, in
/// the pass over memory that it makes anyway.
struct ResidualStream {
  Variable sum;
  Variable pending;  ///< undefined for none

  Variable total() const;
};

/// Where a block normalises: what goes into a layer, as GPT-2 and ViT do, or the sum of its input and output, as the
/// first transformer (Vaswani et al., 2017) and BERT do.
enum class NormPlacement : std::uint8_t { pre, post };

constexpr auto names_of(NormPlacement) { return std::array<std::string_view, 2>{"pre", "post"}; }

/// Pre-layernorm block: x += dropout(attention(norm(x))), then x += dropout(feed_forward(norm(x))). Post-layernorm:
/// x = norm(x + dropout(attention(x))), then x = norm(x + dropout(feed_forward(x))). Sublayers attention_norm,
/// attention, feed_forward_norm, feed_forward.
class TransformerBlock : public Module {
 public:
  TransformerBlock(std::unique_ptr<Norm> attention_norm, std::unique_ptr<AttentionLayer> attention,
                   std::unique_ptr<Norm> feed_forward_norm, std::unique_ptr<FeedForwardLayer> feed_forward,
                   double dropout = 0, NormPlacement placement = NormPlacement::pre);

  /// x [B, T, D] -> [B, T, D], and the sum of both layers' regularisers (undefined for none).
  LayerOutput forward(const Variable& x, const BlockArguments& arguments = {});
  /// The same on the stream, which moves on; returns the regularisers.
  Variable advance(ResidualStream& stream, const BlockArguments& arguments = {});
  AttentionLayer& attention() { return *attention_; }
  FeedForwardLayer& feed_forward() { return *feed_forward_; }
  /// Puts another layer in the place of the feed-forward, which is destroyed: handles of its parameters, an optimiser's
  /// among them, no longer belong to the model.
  void set_feed_forward(std::unique_ptr<FeedForwardLayer> layer);

 private:
  /// What a layer gets of the stream.
  Variable enter(const Norm& norm, ResidualStream& stream) const;
  /// Adds what the layer made of it.
  void leave(const Norm& norm, ResidualStream& stream, const Variable& output) const;

  std::unique_ptr<Norm> attention_norm_;
  std::unique_ptr<AttentionLayer> attention_;
  std::unique_ptr<Norm> feed_forward_norm_;
  std::unique_ptr<FeedForwardLayer> feed_forward_;
  Dropout dropout_;
  NormPlacement placement_;
};

/// Transformer-XL's recurrence: the block inputs of the last `length` tokens seen, cut off from the graph, which the
/// next segment attends to. Use one per stream of text; clear() at the start of another.
struct SegmentMemory {
  std::int64_t length = 0;     ///< M, tokens to keep; set by the user
  std::vector<Tensor> inputs;  ///< per block [B, up to M, D]; empty before the first segment

  void clear() { inputs.clear(); }
};

/// Keys and values of every block, to decode token by token. Starts empty.
struct DecodingState {
  std::vector<KeyValueCache> layers;

  std::int64_t length() const { return layers.empty() ? 0 : layers[0].length; }
};

struct LanguageModelOptions {
  std::int64_t vocabulary_size = 0;
  std::int64_t width = 0;
  double dropout = 0;  ///< of the embeddings
  NormKind norm = NormKind::layernorm;
  double norm_epsilon = 1e-5;
  std::int64_t positions = 0;   ///< rows of a learned position table, the longest text; 0 for no table
  double embedding_scale = 1;   ///< multiplies the tokens' embeddings (not the positions')
  bool tie_embeddings = false;  ///< the output projection is the embedding matrix
  bool output_bias = false;
  bool recompute = false;  ///< keep only the blocks' inputs and run each block again in the backward pass
  Initializer embedding_init = init::normal(0.02);
  Initializer output_init = init::fan_in_normal();
};

struct LanguageModelLoss {
  Variable total;          ///< cross_entropy + regularizer: what to call backward() on
  Variable cross_entropy;  ///< mean over the predicted tokens, in nats
  Variable regularizer;    ///< undefined for none
};

/// Decoder language model: embedding, blocks, a last norm, a projection to the vocabulary (B batch, T tokens, V
/// vocabulary). Parameters embedding.weight [V, D], position.weight [positions, D] where wanted, layers.<i>.*,
/// final_norm.*, output.weight [V, D] unless tied, output.bias [V].
class LanguageModel : public Module {
 public:
  LanguageModel(const LanguageModelOptions& options, std::vector<std::unique_ptr<TransformerBlock>> blocks,
                Generator& generator = initial_weights());

  /// tokens i64 [B, T] -> the normalised output of the last block [B, T, D] and the sum of the blocks' regularisers.
  /// With `memory` the tokens continue its segment, and it moves on.
  LayerOutput hidden(const Tensor& tokens, SegmentMemory* memory = nullptr);
  /// [B, T, V].
  Variable logits(const Tensor& tokens, SegmentMemory* memory = nullptr);
  /// Targets i64 [B, T]; where they equal ignore_index, nothing is predicted. The logits never exist all at once.
  LanguageModelLoss loss(const Tensor& tokens, const Tensor& targets, std::int64_t ignore_index = -100,
                         SegmentMemory* memory = nullptr);
  /// Logits of tokens that continue those in `state`: [B, T, V], or [B, 1, V] with last_only. No gradients. Any
  /// split into calls gives the rows of logits() of the whole text.
  Tensor decode(const Tensor& tokens, DecodingState& state, bool last_only = false);
  /// The attention layers' probabilities and selections for tokens [B, T], one entry per block. No gradients.
  std::vector<AttentionInspection> inspect(const Tensor& tokens);

  std::int64_t layers() const { return static_cast<std::int64_t>(blocks_.size()); }
  TransformerBlock& block(std::int64_t index) { return *blocks_.at(static_cast<std::size_t>(index)); }
  std::int64_t vocabulary_size() const { return options_.vocabulary_size; }
  void set_recompute(bool on) { options_.recompute = on; }

 private:
  /// The first token stands at position `first`.
  Variable embed(const Tensor& tokens, std::int64_t first = 0) const;
  /// Moves the stream through a block and returns its regularisers.
  Variable run_block(std::size_t index, ResidualStream& stream, const BlockArguments& arguments);
  Variable project(const Variable& hidden) const;
  const Variable& output_weight() const;

  LanguageModelOptions options_;
  Embedding embedding_;
  std::unique_ptr<LearnedPositions> position_;  // null without a table
  Dropout dropout_;
  std::vector<std::unique_ptr<TransformerBlock>> blocks_;
  std::unique_ptr<Norm> final_norm_;
  Variable output_weight_, output_bias_;  // undefined when tied; without a bias
};

}  // namespace switchyard::nn
