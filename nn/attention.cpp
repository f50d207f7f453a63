#include "nn/attention.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/shape.h"

namespace switchyard::nn {

void append(KeyValueCache& cache, const Tensor& key, const Tensor& value) {
  check(key.rank() == 4 && value.rank() == 4 && key.size(0) == value.size(0) && key.size(1) == value.size(1),
        "append: keys ", key.shape(), " and values ", value.shape(), ", expected [B, T, H, d] with equal B and T");
  const std::int64_t needed = cache.length + key.size(1);
  const auto grow = [&](Tensor& store, const Tensor& added) {
    check(!store.defined() || (store.size(0) == added.size(0) && store.size(2) == added.size(2) &&
                               store.size(3) == added.size(3) && store.dtype() == added.dtype()),
          "append: ", added.dtype(), " ", added.shape(), " does not continue the cached ", store.dtype(), " ",
          store.shape());
    if (!store.defined() || store.size(1) < needed) {
      const std::int64_t capacity = std::max(needed, 2 * cache.length);
      const Tensor larger =
          Tensor::empty({added.size(0), capacity, added.size(2), added.size(3)}, added.dtype(), added.device());
      if (cache.length > 0) larger.slice(1, 0, cache.length).copy_from(store.slice(1, 0, cache.length));
      store = larger;
    }
    store.slice(1, cache.length, needed).copy_from(added);
  };
  grow(cache.key, key);
  grow(cache.value, value);
  cache.length = needed;
}

AttentionCore::AttentionCore(const PositionOptions& position, std::int64_t width, std::int64_t heads,
                             std::int64_t head_width, double dropout, const Initializer& init, Generator& generator)
    : position_(position, width, heads, head_width, init, generator), dropout_(dropout) {
  check(dropout >= 0 && dropout < 1, "attention: dropout ", dropout, ", expected 0 <= p < 1");
  register_module("position", position_);
}

namespace {

/// Keys or values [B, S, G, d] -> [B, S, heads, d], each of their heads once for every query head that it serves.
Variable shared_among(std::int64_t heads, const Variable& x) {
  const std::int64_t batch = x.size(0), length = x.size(1), groups = x.size(2), width = x.size(3);
  if (groups == heads) return x;
  const Variable grouped = reshape(x, {batch, length, groups, 1, width});
  return reshape(broadcast_to(grouped, {batch, length, groups, heads / groups, width}), {batch, length, heads, width});
}

/// attention() for keys and values with as many heads as the query; shows its probabilities [B, H, T, S] where asked.
Variable attend(const Variable& query, const Variable& key, const Variable& value, const ops::AttentionOptions& options,
                const Variable& position_key, Tensor* probabilities) {
  if (probabilities) {
    ops::AttentionOptions plain = options;
    if (position_key.defined()) plain.position_key = position_key.data();
    plain.dropout = 0;
    *probabilities = ops::attention_probabilities(query.data(), key.data(), plain);
  }
  return attention(query, key, value, options, position_key);
}

/// attend() for the query [B, 1, H, d] of one token, which sees all keys [B, S, G, d]: the heads that share keys become
/// successive queries, so that no key is copied, as decoding would for every token.
Variable attend_grouped(const Variable& query, const Variable& key, const Variable& value,
                        ops::AttentionOptions options, Tensor* probabilities) {
  const std::int64_t batch = query.size(0), heads = query.size(2), groups = key.size(2);
  const Variable successive = transpose(reshape(query, {batch, groups, heads / groups, query.size(3)}), 1, 2);
  options.causal = false;
  const Variable out = attend(successive, key, value, options, {}, probabilities);
  if (probabilities) *probabilities = probabilities->reshape({batch, heads, 1, key.size(1)});
  return reshape(transpose(out, 1, 2), {batch, 1, heads, value.size(3)});
}

}  // namespace

Variable AttentionCore::forward(const Variable& query, const Variable& key, const Variable& value,
                                const AttentionArguments& arguments) {
  KeyValueCache* cache = arguments.cache;
  const std::int64_t cached = cache ? cache->length : 0, length = cached + key.size(1), past = length - query.size(1);
  check(!arguments.causal || past >= 0, "attention: causal with ", query.size(1), " queries but only ", length,
        " keys");
  ops::AttentionOptions options;
  options.scale = 1 / std::sqrt(static_cast<double>(query.size(3)));
  options.causal = arguments.causal;
  options.query_offset = arguments.causal || cache ? past : 0;
  options.mask = arguments.mask;
  options.key_padding = arguments.key_padding;
  options.dropout = training() ? dropout_ : 0;
  const Variable queries = position_.rotated(query, options.query_offset, true);
  Variable keys = position_.rotated(key, cached, true), values = value;
  if (cache) {
    append(*cache, keys.data(), values.data());
    keys = Variable(cache->key.slice(1, 0, length));
    values = Variable(cache->value.slice(1, 0, length));
  }
  const Variable position_key = position_.relative(queries, length, options, cache);
  Tensor* probabilities = arguments.inspection ? &arguments.inspection->probabilities : nullptr;
  const std::int64_t heads = query.size(2);
  if (query.size(1) == 1 && keys.size(2) < heads && !position_key.defined() && !options.mask.defined())
    return attend_grouped(queries, keys, values, options, probabilities);
  return attend(queries, shared_among(heads, keys), shared_among(heads, values), options, position_key, probabilities);
}

namespace {

std::int64_t head_width_of(const MultiHeadAttentionOptions& options) {
  check(options.width > 0 && options.heads > 0 && options.head_width >= 0, "MultiHeadAttention: width ", options.width,
        ", ", options.heads, " heads, head width ", options.head_width);
  if (options.head_width > 0) return options.head_width;
  check(options.width % options.heads == 0, "MultiHeadAttention: width ", options.width, " is not divisible by ",
        options.heads, " heads; give the head width");
  return options.width / options.heads;
}

std::int64_t key_value_heads_of(const MultiHeadAttentionOptions& options) {
  const std::int64_t groups = options.key_value_heads > 0 ? options.key_value_heads : options.heads;
  check(options.key_value_heads >= 0 && options.heads % groups == 0, "MultiHeadAttention: ", options.key_value_heads,
        " key-value heads for ", options.heads, " heads, expected a divisor, or 0 for as many");
  return groups;
}

std::unique_ptr<Linear> linear_projection(const MultiHeadAttentionOptions& options, ProjectionKind kind,
                                          Generator& generator) {
  const std::int64_t heads = is_of_keys(kind) ? key_value_heads_of(options) : options.heads;
  const std::int64_t all_heads = heads * head_width_of(options);
  const bool output = kind == ProjectionKind::output;
  return std::make_unique<Linear>(output ? all_heads : options.width, output ? options.width : all_heads, options.bias,
                                  options.init, generator);
}

}  // namespace

MultiHeadAttention::MultiHeadAttention(const MultiHeadAttentionOptions& options, Generator& generator)
    : width_(options.width),
      heads_(options.heads),
      head_width_(head_width_of(options)),
      key_value_heads_(key_value_heads_of(options)),
      projections_{{{linear_projection(options, ProjectionKind::query, generator), nullptr},
                    {linear_projection(options, ProjectionKind::key, generator), nullptr},
                    {linear_projection(options, ProjectionKind::value, generator), nullptr},
                    {}}},
      core_(options.position, options.width, heads_, head_width_, options.dropout, options.init, generator) {
  projections_.back().linear = linear_projection(options, ProjectionKind::output, generator);
  const auto register_projection = [this](ProjectionKind kind) {
    register_module(sublayer_name(kind), *at(kind).linear);
  };
  register_projection(ProjectionKind::query);
  register_projection(ProjectionKind::key);
  register_projection(ProjectionKind::value);
  register_module("", core_);
  register_projection(ProjectionKind::output);
}

void MultiHeadAttention::set_stand_in(ProjectionKind kind, std::unique_ptr<FeedForwardLayer> layer) {
  check(layer != nullptr, "MultiHeadAttention: the stand-in for ", sublayer_name(kind), " is missing");
  layer->train(training());
  replace_module(sublayer_name(kind), *layer);
  projections_[static_cast<std::size_t>(kind)] = {nullptr, std::move(layer)};
}

LayerOutput MultiHeadAttention::project(ProjectionKind kind, const Variable& source) const {
  const Projection& projection = at(kind);
  LayerOutput out;
  if (projection.stand_in) {
    out = projection.stand_in->forward(source);
    const std::int64_t heads = is_of_keys(kind) ? key_value_heads_ : heads_;
    const std::int64_t expected = kind == ProjectionKind::output ? width_ : heads * head_width_;
    check(out.output.shape() == Shape{source.size(0), source.size(1), expected},
          "MultiHeadAttention: the stand-in for ", sublayer_name(kind), " gives ", out.output.shape(),
          ", expected [batch, tokens, ", expected, "]");
  } else {
    out.output = projection.linear->forward(source);
  }
  if (observer_) observer_(kind, source, out.output);
  return out;
}

LayerOutput MultiHeadAttention::forward(const Variable& x, const AttentionArguments& arguments) {
  check(x.rank() == 3, "MultiHeadAttention: x is ", x.shape(), ", expected [batch, tokens, width]");
  const Variable& key_source = arguments.key_source.defined() ? arguments.key_source : x;
  const Variable& value_source = arguments.value_source.defined() ? arguments.value_source : key_source;
  Variable regularizer;
  const auto heads = [&](ProjectionKind kind, const Variable& source) {
    const LayerOutput out = project(kind, source);
    regularizer = add_regularizers(regularizer, out.regularizer);
    return reshape(out.output, {source.size(0), source.size(1), out.output.size(2) / head_width_, head_width_});
  };
  const Variable query = heads(ProjectionKind::query, x), key = heads(ProjectionKind::key, key_source),
                 value = heads(ProjectionKind::value, value_source);
  const Variable attended = core_.forward(query, key, value, arguments);
  const LayerOutput out =
      project(ProjectionKind::output, reshape(attended, {x.size(0), x.size(1), heads_ * head_width_}));
  return {out.output, add_regularizers(regularizer, out.regularizer)};
}

}  // namespace switchyard::nn
