#pragma once

#include "nn/layer.h"
#include "nn/linear.h"
#include "nn/position.h"

namespace switchyard::nn {

/// What every attention layer does between its projections: cache, positions, masks, softmax, read-out. Queries and
/// keys come unscaled; the logits are multiplied by 1 / sqrt(d).
///
/// In causal attention the last query stands at the last key, so with S > T keys the first S - T are the past.
class AttentionCore : public Module {
 public:
  AttentionCore(const PositionOptions& position, std::int64_t width, std::int64_t heads, std::int64_t head_width,
                double dropout, const Initializer& init = init::fan_in_normal(),
                Generator& generator = initial_weights());

  /// query [B, T, H, d], key [B, S, H, d], value [B, S, H, dv] -> [B, T, H, dv]. Query and key must be the caller's own
  /// projections, not read again: positions may be put into them in place. With arguments.cache, key and value
  /// are those of the new tokens: they are appended to it (key as given, before position encoding) and the queries see
  /// all cached tokens. Fills arguments.inspection->probabilities.
  Variable forward(const Variable& query, const Variable& key, const Variable& value,
                   const AttentionArguments& arguments);

 private:
  PositionEncoding position_;
  double dropout_;
};

/// Appends key, value [B, T, H, d] to the cache; its memory doubles when full.
void append(KeyValueCache& cache, const Tensor& key, const Tensor& value);

struct MultiHeadAttentionOptions {
  std::int64_t width = 0;
  std::int64_t heads = 1;
  std::int64_t head_width = 0;  ///< independent of width; 0 means width / heads
  PositionOptions position;
  double dropout = 0;  ///< of attention weights
  bool bias = false;
  Initializer init = init::fan_in_normal();
};

/// Multi-head attention (Vaswani et al., 2017). Parameters query.weight, key.weight, value.weight [H d, D] and
/// output.weight [D, H d]; with xl positions also position.projection.weight [H d, D].
class MultiHeadAttention : public AttentionLayer {
 public:
  explicit MultiHeadAttention(const MultiHeadAttentionOptions& options, Generator& generator = initial_weights());

  LayerOutput forward(const Variable& x, const AttentionArguments& arguments = {}) override;

 private:
  std::int64_t heads_, head_width_;
  Linear query_, key_, value_;
  AttentionCore core_;
  Linear output_;
};

}  // namespace switchyard::nn
