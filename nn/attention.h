#pragma once

#include <functional>
#include <memory>

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

  /// query [B, T, H, d], key [B, S, G, d], value [B, S, G, dv] -> [B, T, H, dv]. G is H, or divides it: then each head
  /// of keys and values serves H / G successive heads of queries. Query and key must be the caller's own projections,
  /// not read again: positions may be put into them in place. With arguments.cache, key and value are those of the new
  /// tokens: they are appended to it, keys rotated where positions are (rope), and the queries see all cached tokens.
  /// Fills arguments.inspection->probabilities.
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
  /// G, heads of keys and values, which share the query heads evenly (Ainslie et al., 2023); 0 means as many as heads
  std::int64_t key_value_heads = 0;
  PositionOptions position;
  double dropout = 0;  ///< of attention weights
  bool bias = false;
  Initializer init = init::fan_in_normal();
};

/// Is shown what goes into a projection, [B, T, inputs], and what comes out, while the layer runs: positions may be put
/// into the output in place afterwards.
using ProjectionObserver = std::function<void(ProjectionKind kind, const Variable& input, const Variable& output)>;

/// Multi-head attention (Vaswani et al., 2017), grouped-query where key_value_heads says so. Parameters query.weight
/// [H d, D], key.weight, value.weight [G d, D] and output.weight [D, H d], each with a bias where wanted; with xl
/// positions also position.projection.weight [H d, D]. Another layer may take the place of any projection; its
/// parameters are then query.* and so on.
class MultiHeadAttention : public AttentionLayer {
 public:
  explicit MultiHeadAttention(const MultiHeadAttentionOptions& options, Generator& generator = initial_weights());

  LayerOutput forward(const Variable& x, const AttentionArguments& arguments = {}) override;

  /// A projection as the layer was built; null where another layer stands in for it.
  const Linear* linear(ProjectionKind kind) const { return at(kind).linear.get(); }
  /// The layer in the place of a projection; null where there is none.
  FeedForwardLayer* stand_in(ProjectionKind kind) const { return at(kind).stand_in.get(); }
  /// Puts a layer with the projection's inputs and outputs in its place. What was there is destroyed: handles of its
  /// parameters, an optimiser's among them, no longer belong to the model.
  void set_stand_in(ProjectionKind kind, std::unique_ptr<FeedForwardLayer> layer);
  /// From now on `observer` sees every projection; an empty one sees nothing.
  void set_projection_observer(ProjectionObserver observer) { observer_ = std::move(observer); }

 private:
  struct Projection {
    std::unique_ptr<Linear> linear;              // null once there is a stand-in
    std::unique_ptr<FeedForwardLayer> stand_in;  // null until then
  };
  const Projection& at(ProjectionKind kind) const { return projections_[static_cast<std::size_t>(kind)]; }
  LayerOutput project(ProjectionKind kind, const Variable& source) const;

  std::int64_t width_, heads_, head_width_, key_value_heads_;
  std::array<Projection, 4> projections_;  // by ProjectionKind
  AttentionCore core_;
  ProjectionObserver observer_;
};

}  // namespace switchyard::nn
