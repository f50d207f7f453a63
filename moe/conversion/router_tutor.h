#pragma once

#include <limits>
#include <vector>

#include "moe/conversion/dynamic_feed_forward.h"
#include "moe/conversion/router_training.h"

namespace switchyard::moe {

/// What a router learns to predict of each expert.
enum class RouterTarget {
  output_norm,      ///< the L2 norm of its output (D2DMoE)
  activation_share  ///< its share of the activations (MoEfication)
};

/// Trains the routers of converted layers on what passes through the layers: for as long as it lives it keeps the rows
/// that each layer read last. The layers' own weights are the teachers and get no gradient.
class RouterTutor {
 public:
  /// Of the rows that pass through a layer at a time it keeps the first `most_rows`: targets of rows cost about as much
  /// as running them. Throws Error when there are no layers. They must live longer.
  RouterTutor(std::vector<DynamicFeedForward*> layers, RouterTarget target, RouterLoss loss,
              std::int64_t most_rows = std::numeric_limits<std::int64_t>::max());
  ~RouterTutor();
  RouterTutor(const RouterTutor&) = delete;
  RouterTutor& operator=(const RouterTutor&) = delete;

  /// Measures the targets of each layer (their mean on the rows seen last; reads it back) and divides them by it from
  /// then on: norms of sparse layers are small, and a learning rate would have to know how small. Scales the routers'
  /// scores to the same mean.
  void normalize();
  /// Once training is over: routers that learned normalised targets now give the targets themselves.
  void undo_normalization();

  /// Parameters of all routers, "<layer>.layers.<i>.weight" with the layers numbered from 0.
  std::vector<nn::NamedParameter> parameters() const;
  /// How many rows were kept last. Throws Error before the model has run.
  std::int64_t rows() const;
  /// Sum of the routers' losses on rows first .. last - 1 of them: each router learns as if it were alone.
  Variable loss(std::int64_t first, std::int64_t last) const;
  /// How each router does on the first `rows` of them. Recall is of the best experts, `share` of a layer's but at least
  /// one (see router_quality).
  std::vector<RouterQuality> quality(std::int64_t rows, double share) const;

 private:
  Tensor target_of(std::size_t layer, const Tensor& rows) const;
  /// What a layer's router is to predict for all its rows. Computed when first asked for: a batch serves several steps,
  /// and the matrices that norms come from depend on the weights alone.
  const Tensor& learned_target(std::size_t layer) const;

  std::vector<DynamicFeedForward*> layers_;
  RouterTarget target_;
  RouterLoss loss_;
  std::vector<Tensor> rows_;             // [N, D] of each layer
  mutable std::vector<Tensor> targets_;  // [N, E] of each layer, divided by its size; undefined until asked for
  std::vector<double> sizes_;            // what each layer's targets are divided by
};

}  // namespace switchyard::moe
