#pragma once

#include <functional>

#include "moe/conversion/dynamic_statistics.h"
#include "moe/conversion/expert_weights.h"
#include "moe/conversion/norm_router.h"
#include "nn/layer.h"

namespace switchyard::moe {

using ops::Gate;
using ops::GateMode;

/// A dense feed-forward, or the stand-in for a projection of attention, that was split into experts, of which each
/// token runs those that its router expects to matter (Szatkowski et al., 2024, arXiv 2310.04361):
///   y = sum over the chosen e of activation(x up_e + up_bias_e) down_e, plus last_bias once; GLU and the residual
/// connection as in ExpertWeights.
/// Chosen experts count in full: scores decide, they do not weight. So all experts together are the dense layer, and
/// the choice carries no gradient; routers are trained by themselves (router_training.h). The cost follows the experts
/// really run. Parameters w1, b1, gate, gate_bias, w2, last_bias (ExpertWeights' up, up_bias, gate, gate_bias, down,
/// last_bias), as far as there are any, and router.*. w1 and gate are [E, S, D]: so one layout, a row of weights for
/// each neuron, serves all experts as a dense layer and single experts.
class DynamicFeedForward : public nn::FeedForwardLayer {
 public:
  /// The weights become the layer's parameters, uncopied where they lie on the default device in that layout. Of
  /// `router`, width and experts are taken from the weights. Starts with the gate `all`. Throws Error where shapes do
  /// not fit.
  DynamicFeedForward(const ExpertWeights& weights, ops::Activation activation, NormRouterOptions router = {},
                     Generator& generator = nn::initial_weights());

  /// x [B, T, D] -> [B, T, output width]. The router runs unless the gate is `all`.
  nn::LayerOutput forward(const Variable& x) override;
  /// The layer with the choice given: rows [N, D], mask bool [N, E] -> [N, output width]. Experts are weighted by
  /// `gates` [N, E] where those are defined.
  Variable run(const Variable& rows, const Tensor& mask, const Variable& gates = {}) const;

  /// Throws Error for a gate that ops::check_gate() refuses. May change between any two calls of forward.
  void set_gate(const Gate& gate);
  /// Called by every forward from now on with its rows [N, D]: what a router is to be trained on. An empty one ends
  /// that.
  void set_observer(std::function<void(const Tensor& rows)> observer) { observer_ = std::move(observer); }
  const Gate& gate() const { return gate_; }
  NormRouter& router() { return router_; }
  const NormRouter& router() const { return router_; }
  /// The parameters' tensors, uncopied.
  ExpertWeights weights() const;
  ops::Activation activation() const { return activation_; }

  /// Whether forward counts the experts run, and forgets what was counted. In training only passes that record
  /// gradients count, so that recomputed blocks are not counted twice.
  void collect(bool on);
  const DynamicStatistics& statistics() const { return statistics_; }

 private:
  /// Activations of all experts' neurons: rows [N, D] -> [N, E S].
  Variable hidden(const Variable& rows) const;
  /// What these activations give: [N, output width].
  Variable output_of(const Variable& hidden) const;
  /// The chosen experts, each by products of its own.
  Variable run_by_expert(const Variable& rows, const Tensor& mask, const Variable& gates) const;
  /// All experts as one dense layer, in which those not chosen count nothing.
  Variable run_densely(const Variable& rows, const Tensor& mask, const Variable& gates) const;
  /// The experts that the router chooses, without gradients: rows [N, D] -> [N, output width].
  Variable run_chosen(const Variable& rows) const;
  /// The experts' sum with what is added whichever of them run.
  Variable completed(const Variable& experts, const Variable& rows) const;
  Tensor choose(const Variable& rows) const;

  ops::Activation activation_;
  bool residual_;
  NormRouter router_;
  Variable w1_, b1_, gate_weight_, gate_bias_, w2_, last_bias_;
  Gate gate_;
  std::function<void(const Tensor& rows)> observer_;
  bool collect_ = false;
  DynamicStatistics statistics_;
};

}  // namespace switchyard::moe
