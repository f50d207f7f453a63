#pragma once

#include <array>
#include <cstdint>

#include "core/ops/routing.h"
#include "nn/module.h"

namespace switchyard::nn {

/// The projections of an attention layer.
enum class ProjectionKind : std::uint8_t { query, key, value, output };
inline constexpr std::array kProjectionKinds = {ProjectionKind::query, ProjectionKind::key, ProjectionKind::value,
                                                ProjectionKind::output};
/// The names used in configuration files and messages, in the order of the enumerators.
constexpr auto names_of(ProjectionKind) { return std::array<std::string_view, 4>{"q", "k", "v", "o"}; }
/// The sublayer that an attention layer has for it: "query", "key", "value" or "output".
std::string sublayer_name(ProjectionKind kind);
/// True for the projections of the tokens attended to, which may have fewer heads than the queries.
constexpr bool is_of_keys(ProjectionKind kind) { return kind == ProjectionKind::key || kind == ProjectionKind::value; }

/// What an exchangeable layer of a transformer block returns.
struct LayerOutput {
  Variable output;
  Variable regularizer;  ///< a scalar to be added to the loss, already weighted; undefined for none
};

/// Sum of two regularisers, either of which may be none (undefined).
Variable add_regularizers(const Variable& a, const Variable& b);

/// Keys and values of the tokens decoded so far, one per attention layer. Empty to begin with.
struct KeyValueCache {
  Tensor key, value;  ///< [B, capacity, H, d]; with rope, keys already rotated, which depends on their place alone
  std::int64_t length = 0;
  /// xl: the position keys [R, H, d] of the distances -position_zero .. R - 1 - position_zero, more than needed so far.
  Tensor position_key;
  std::int64_t position_zero = 0;
};

/// One routed projection of an attention layer, as read out for inspection.
struct SelectionRecord {
  std::string projection;  ///< its sublayer_name()
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

/// Any layer that works on each token by itself: x [B, T, inputs] -> [B, T, outputs], memory of its own. In a
/// transformer block, where it is the feed-forward, inputs and outputs are the model's width.
class FeedForwardLayer : public Module {
 public:
  virtual LayerOutput forward(const Variable& x) = 0;
};

}  // namespace switchyard::nn
