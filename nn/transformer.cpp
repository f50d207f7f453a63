#include "nn/transformer.h"

#include <algorithm>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/loss.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/shape.h"
#include "autograd/recompute.h"
#include "core/ops/index.h"

namespace switchyard::nn {
namespace {

/// The norm of the stream, whose pending addition is done on the way.
Variable add_and_norm(const Norm& norm, ResidualStream& stream) {
  const AddedNorm added = norm.add_forward(stream.sum, stream.pending);
  stream = {added.sum, {}};
  return added.normed;
}

/// The last `length` tokens of `past` (or none) followed by `inputs`, in memory of their own.
Tensor last_tokens(const Tensor& past, const Tensor& inputs, std::int64_t length) {
  const Tensor all = past.defined() ? ops::concat({past, inputs}, 1) : inputs;
  return all.slice(1, std::max<std::int64_t>(all.size(1) - length, 0), all.size(1)).clone();
}

}  // namespace

Variable ResidualStream::total() const { return pending.defined() ? sum + pending : sum; }

TransformerBlock::TransformerBlock(std::unique_ptr<Norm> attention_norm, std::unique_ptr<AttentionLayer> attention,
                                   std::unique_ptr<Norm> feed_forward_norm,
                                   std::unique_ptr<FeedForwardLayer> feed_forward, double dropout,
                                   NormPlacement placement)
    : attention_norm_(std::move(attention_norm)),
      attention_(std::move(attention)),
      feed_forward_norm_(std::move(feed_forward_norm)),
      feed_forward_(std::move(feed_forward)),
      dropout_(dropout),
      placement_(placement) {
  check(attention_norm_ && attention_ && feed_forward_norm_ && feed_forward_, "TransformerBlock: a layer is missing");
  register_module("attention_norm", *attention_norm_);
  register_module("attention", *attention_);
  register_module("feed_forward_norm", *feed_forward_norm_);
  register_module("feed_forward", *feed_forward_);
  register_module("dropout", dropout_);
}

void TransformerBlock::set_feed_forward(std::unique_ptr<FeedForwardLayer> layer) {
  check(layer != nullptr, "TransformerBlock: the feed-forward is missing");
  layer->train(training());
  replace_module("feed_forward", *layer);
  feed_forward_ = std::move(layer);
}

LayerOutput TransformerBlock::forward(const Variable& x, const BlockArguments& arguments) {
  ResidualStream stream{x, {}};
  const Variable regularizer = advance(stream, arguments);
  return {stream.total(), regularizer};
}

Variable TransformerBlock::enter(const Norm& norm, ResidualStream& stream) const {
  if (placement_ == NormPlacement::pre) return add_and_norm(norm, stream);
  stream = {stream.total(), {}};
  return stream.sum;
}

void TransformerBlock::leave(const Norm& norm, ResidualStream& stream, const Variable& output) const {
  stream.pending = dropout_.forward(output);
  if (placement_ == NormPlacement::post) stream = {norm.add_forward(stream.sum, stream.pending).normed, {}};
}

Variable TransformerBlock::advance(ResidualStream& stream, const BlockArguments& arguments) {
  AttentionArguments attention_arguments;
  attention_arguments.cache = arguments.cache;
  attention_arguments.causal = arguments.causal;
  attention_arguments.key_padding = arguments.key_padding;
  attention_arguments.inspection = arguments.inspection;
  Variable regularizer;
  {
    NameScope scope("attention");
    const Variable input = enter(*attention_norm_, stream);
    if (arguments.memory.defined()) {
      check(!arguments.cache, "TransformerBlock: a segment memory and a KV cache cannot be combined");
      const Variable memory(arguments.memory);
      attention_arguments.key_source =
          concat({placement_ == NormPlacement::pre ? attention_norm_->forward(memory) : memory, input}, 1);
    }
    const LayerOutput attended = attention_->forward(input, attention_arguments);
    leave(*attention_norm_, stream, attended.output);
    regularizer = attended.regularizer;
  }
  NameScope scope("feed_forward");
  const LayerOutput fed = feed_forward_->forward(enter(*feed_forward_norm_, stream));
  leave(*feed_forward_norm_, stream, fed.output);
  return add_regularizers(regularizer, fed.regularizer);
}

LanguageModel::LanguageModel(const LanguageModelOptions& options, std::vector<std::unique_ptr<TransformerBlock>> blocks,
                             Generator& generator)
    : options_(options),
      embedding_(options.vocabulary_size, options.width, options.embedding_init, generator),
      dropout_(options.dropout),
      blocks_(std::move(blocks)),
      final_norm_(make_norm(options.norm, options.width, options.norm_epsilon)) {
  register_module("embedding", embedding_);
  if (options.positions > 0) {
    position_ = std::make_unique<LearnedPositions>(options.positions, options.width, options.embedding_init, generator);
    register_module("position", *position_);
  }
  register_module("dropout", dropout_);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    check(blocks_[i] != nullptr, "LanguageModel: block ", i, " is missing");
    register_module("layers." + std::to_string(i), *blocks_[i]);
  }
  register_module("final_norm", *final_norm_);
  const Shape shape = {options.vocabulary_size, options.width};
  if (!options.tie_embeddings)
    output_weight_ = register_parameter("output.weight", options.output_init(shape, generator));
  if (options.output_bias)
    output_bias_ = register_parameter("output.bias", Tensor::zeros({options.vocabulary_size}), false);
}

const Variable& LanguageModel::output_weight() const {
  return output_weight_.defined() ? output_weight_ : embedding_.weight();
}

Variable LanguageModel::embed(const Tensor& tokens, std::int64_t first) const {
  check(tokens.defined() && tokens.rank() == 2 && tokens.dtype() == DType::i64,
        "LanguageModel: expected tokens i64 [batch, tokens], got ", tokens.defined() ? name_of(tokens.dtype()) : "none",
        " ", tokens.shape());
  NameScope scope("embedding");
  Variable x = embedding_.forward(tokens);
  if (options_.embedding_scale != 1) x = x * options_.embedding_scale;
  if (position_) x = x + position_->forward(tokens.size(1), first);
  return dropout_.forward(x);
}

Variable LanguageModel::run_block(std::size_t index, ResidualStream& stream, const BlockArguments& arguments) {
  TransformerBlock& block = *blocks_[index];
  const std::string name = "layers." + std::to_string(index);
  if (!options_.recompute || !grad_enabled()) {
    NameScope scope(name);
    return block.advance(stream, arguments);
  }
  const Variables results = recompute(
      [&block, name, arguments](const Variables& inputs) {
        NameScope scope(name);  // inside: a recomputed block runs again, in the backward pass
        const LayerOutput out = block.forward(inputs[0], arguments);
        return out.regularizer.defined() ? Variables{out.output, out.regularizer} : Variables{out.output};
      },
      {stream.total()});
  stream = {results[0], {}};
  return results.size() > 1 ? results[1] : Variable();
}

LayerOutput LanguageModel::hidden(const Tensor& tokens, SegmentMemory* memory) {
  const bool has_past = memory && !memory->inputs.empty();
  if (memory) {
    check(!position_, "LanguageModel: learned positions stand still, a segment memory needs relative ones (xl)");
    check(memory->length > 0, "LanguageModel: a segment memory needs a length of at least 1, got ", memory->length);
    check(!has_past || (memory->inputs.size() == blocks_.size() && memory->inputs[0].size(0) == tokens.size(0)),
          "LanguageModel: the segment memory belongs to another model or batch size; clear() it first");
  }
  ResidualStream stream{embed(tokens), {}};
  Variable regularizer;
  std::vector<Tensor> kept;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    BlockArguments arguments;
    if (has_past) arguments.memory = memory->inputs[i];
    if (memory) {
      stream = {stream.total(), {}};
      kept.push_back(last_tokens(arguments.memory, stream.sum.data(), memory->length));
    }
    regularizer = add_regularizers(regularizer, run_block(i, stream, arguments));
  }
  if (memory) memory->inputs = std::move(kept);
  NameScope scope("final_norm");
  return {final_norm_->forward(stream.total()), regularizer};
}

Variable LanguageModel::project(const Variable& hidden) const {
  NameScope scope("output");
  return linear(hidden, output_weight(), output_bias_);
}

Variable LanguageModel::logits(const Tensor& tokens, SegmentMemory* memory) {
  return project(hidden(tokens, memory).output);
}

LanguageModelLoss LanguageModel::loss(const Tensor& tokens, const Tensor& targets, std::int64_t ignore_index,
                                      SegmentMemory* memory) {
  check(targets.defined() && targets.shape() == tokens.shape(), "LanguageModel: targets ", targets.shape(),
        " for tokens ", tokens.shape());
  const LayerOutput out = hidden(tokens, memory);
  NameScope scope("output");
  const std::int64_t rows = tokens.numel();
  const Variable cross_entropy = linear_cross_entropy(reshape(out.output, {rows, options_.width}), output_weight(),
                                                      output_bias_, targets.reshape({rows}), ignore_index);
  if (!out.regularizer.defined()) return {cross_entropy, cross_entropy, {}};
  return {cross_entropy + cast(out.regularizer, cross_entropy.dtype()), cross_entropy, out.regularizer};
}

Tensor LanguageModel::decode(const Tensor& tokens, DecodingState& state, bool last_only) {
  NoGradGuard no_grad;
  check(state.layers.empty() || state.layers.size() == blocks_.size(), "LanguageModel: the decoding state has ",
        state.layers.size(), " layers, the model ", blocks_.size());
  check(tokens.numel() > 0, "LanguageModel: decode needs at least one token, got ", tokens.shape());
  ResidualStream stream{embed(tokens, state.length()), {}};
  state.layers.resize(blocks_.size());
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    BlockArguments arguments;
    arguments.cache = &state.layers[i];
    run_block(i, stream, arguments);
  }
  Variable x = stream.total();
  if (last_only) x = slice(x, 1, tokens.size(1) - 1, tokens.size(1));
  return project(final_norm_->forward(x)).data();
}

std::vector<AttentionInspection> LanguageModel::inspect(const Tensor& tokens) {
  NoGradGuard no_grad;
  std::vector<AttentionInspection> inspections(blocks_.size());
  ResidualStream stream{embed(tokens), {}};
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    BlockArguments arguments;
    arguments.inspection = &inspections[i];
    run_block(i, stream, arguments);
  }
  return inspections;
}

}  // namespace switchyard::nn
