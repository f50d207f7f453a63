#pragma once

#include "core/ops/routing.h"
#include "nn/module.h"

namespace switchyard::nn {

/// What an exchangeable layer of a transformer block returns.
struct LayerOutput {
  Variable output;
  Variable regularizer;  ///< a scalar to be added to the loss, already weighted; undefined for none
};

/// Keys and values of the tokens decoded so far, one per attention layer. Empty to begin with.
struct KeyValueCache {
  Tensor key, value;  ///< [B, capacity, H, d]; keys before position encoding
  std::int64_t length = 0;
};

/// One routed projection of an attention layer, as read out for inspection.
struct SelectionRecord {
  std::string projection;  ///< "query", "key", "value" or "output"
  Tensor indices;          ///< i32 [B, T, H, k]
  Tensor gates;            ///< [B, T, H, k]
};

/// Filled by an attention layer when asked for.
struct AttentionInspection {
  Tensor probabilities;  ///< [B, H, T, S]
  std::vector<SelectionRecord> selections;
};

/// How one call of an attention layer differs from plain causal self-attention.
struct AttentionArguments {
  /// Where keys (and values) are read from; undefined means the query source. In causal attention a longer source
  /// is a past that precedes the queries (a cached previous segment).
  Variable key_source;
  Variable value_source;  ///< undefined means key_source
  bool causal = true;
  Tensor mask;                     ///< bool [T, S], true hides
  Tensor key_padding;              ///< bool [B, S], true hides
  KeyValueCache* cache = nullptr;  ///< decoding: x continues the cached tokens; grows by x's tokens. No gradients
  AttentionInspection* inspection = nullptr;
};

/// Any attention that fits a transformer block: x [B, T, D] -> [B, T, D].
class AttentionLayer : public Module {
 public:
  virtual LayerOutput forward(const Variable& x, const AttentionArguments& arguments = {}) = 0;
};

/// Any feed-forward that fits a transformer block: x [B, T, D] -> [B, T, D].
class FeedForwardLayer : public Module {
 public:
  virtual LayerOutput forward(const Variable& x) = 0;
};

}  // namespace switchyard::nn
