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

Variable AttentionCore::forward(const Variable& query, const Variable& key, const Variable& value,
                                const AttentionArguments& arguments) {
  Variable keys = key, values = value;
  if (KeyValueCache* cache = arguments.cache) {
    append(*cache, key.data(), value.data());
    keys = Variable(cache->key.slice(1, 0, cache->length));
    values = Variable(cache->value.slice(1, 0, cache->length));
  }
  const std::int64_t past = keys.size(1) - query.size(1);
  check(!arguments.causal || past >= 0, "attention: causal with ", query.size(1), " queries but only ", keys.size(1),
        " keys");
  ops::AttentionOptions options;
  options.scale = 1 / std::sqrt(static_cast<double>(query.size(3)));
  options.causal = arguments.causal;
  options.query_offset = arguments.causal || arguments.cache ? past : 0;
  options.mask = arguments.mask;
  options.key_padding = arguments.key_padding;
  options.dropout = training() ? dropout_ : 0;
  const PositionEncoding::Encoded encoded = position_.encode(query, keys, options, true, !arguments.cache);
  if (arguments.inspection) {
    ops::AttentionOptions plain = encoded.options;
    if (encoded.position_key.defined()) plain.position_key = encoded.position_key.data();
    plain.dropout = 0;
    arguments.inspection->probabilities = ops::attention_probabilities(encoded.query.data(), encoded.key.data(), plain);
  }
  return attention(encoded.query, encoded.key, values, encoded.options, encoded.position_key);
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

}  // namespace

MultiHeadAttention::MultiHeadAttention(const MultiHeadAttentionOptions& options, Generator& generator)
    : heads_(options.heads),
      head_width_(head_width_of(options)),
      query_(options.width, heads_ * head_width_, options.bias, options.init, generator),
      key_(options.width, heads_ * head_width_, options.bias, options.init, generator),
      value_(options.width, heads_ * head_width_, options.bias, options.init, generator),
      core_(options.position, options.width, heads_, head_width_, options.dropout, options.init, generator),
      output_(heads_ * head_width_, options.width, options.bias, options.init, generator) {
  register_module("query", query_);
  register_module("key", key_);
  register_module("value", value_);
  register_module("", core_);
  register_module("output", output_);
}

LayerOutput MultiHeadAttention::forward(const Variable& x, const AttentionArguments& arguments) {
  check(x.rank() == 3, "MultiHeadAttention: x is ", x.shape(), ", expected [batch, tokens, width]");
  const Variable& key_source = arguments.key_source.defined() ? arguments.key_source : x;
  const Variable& value_source = arguments.value_source.defined() ? arguments.value_source : key_source;
  const auto heads = [&](const Variable& y) { return reshape(y, {y.size(0), y.size(1), heads_, head_width_}); };
  const Variable attended = core_.forward(heads(query_.forward(x)), heads(key_.forward(key_source)),
                                          heads(value_.forward(value_source)), arguments);
  return {output_.forward(reshape(attended, {x.size(0), x.size(1), heads_ * head_width_})), {}};
}

}  // namespace switchyard::nn
