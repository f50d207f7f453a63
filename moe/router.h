#pragma once

#include "moe/language_model_config.h"
#include "moe/statistics.h"
#include "nn/init.h"

namespace switchyard::moe {

/// N tokens; H slots with E experts each (the heads of SwitchHead; 1 slot for a feed-forward); k chosen per slot.
struct RouterOptions {
  std::int64_t width = 0;    ///< D of the tokens it reads
  std::int64_t slots = 1;    ///< H
  std::int64_t experts = 1;  ///< E
  std::int64_t k = 1;
  SelectionKind selection = SelectionKind::sigmoid;
  std::int64_t sinkhorn_rounds = 3;  ///< sinkmoid only
  double expert_dropout = 0;         ///< probability that an expert is hidden from a token in training
  double entropy_regularizer = 0;    ///< weight; 0 for none
  double init_scale = 1;
};

/// What the options of a layer say of its routers; slots and sinkhorn_rounds keep their defaults.
template <class LayerOptions>
RouterOptions router_options(const LayerOptions& layer) {
  RouterOptions router;
  router.width = layer.width;
  router.experts = layer.experts;
  router.k = layer.k;
  router.selection = layer.selection;
  router.expert_dropout = layer.expert_dropout;
  router.entropy_regularizer = layer.entropy_regularizer;
  router.init_scale = layer.init_scale;
  return router;
}

/// What a router decided.
struct Routing {
  ops::RoutingPlan plan;
  Variable gates;        ///< [N, H, k], in the dtype of the tokens
  Tensor indices;        ///< i32 [N, H, k], best first
  Variable scores;       ///< [N, H, E], raw, in the compute dtype
  Variable regularizer;  ///< weighted scalar; undefined for none
};

/// Scores tokens against experts and picks k of each slot. Parameter weight [H E, D], row h E + e for expert e of slot
/// h.
///
/// The k largest raw scores are chosen (all activations keep their order), except under sinkmoid in training, where
/// scores are first balanced within each sequence. Gates are the chosen experts' sigmoid(score), softmax over all E, or
/// softmax over the chosen k; they are not normalised further, and only they carry gradients. Products and scores are
/// in the compute dtype (f32 for bf16 tokens), because rounding them would change selections.
class Router : public nn::Module {
 public:
  /// Rows start normal with deviation init_scale / sqrt(D), each then scaled to the norm init_scale, so that no expert
  /// is preferred from the start.
  explicit Router(const RouterOptions& options, Generator& generator = nn::initial_weights());

  /// tokens [B, T, D]; N = B T.
  Routing route(const Variable& tokens);

  void collect(Collect what);
  void reset_statistics() { statistics_.reset(); }
  const RoutingStatistics& statistics() const { return statistics_; }
  const RouterOptions& options() const { return options_; }

 private:
  Tensor choose(const Tensor& scores, std::int64_t batch) const;

  RouterOptions options_;
  Variable weight_;
  Collect collect_ = Collect::nothing;
  RoutingStatistics statistics_;
};

/// What sinkmoid adds to the scores before choosing: a [B, 1, H, E] of scores [B, T, H, E] after `rounds` rounds of
/// b_t = log T - logsumexp_e(score - a_e), a_e = log E - logsumexp_t(score - b_t), from a = 0. (b does not change the
/// order within a token.)
Tensor sinkhorn_offsets(const Tensor& scores, std::int64_t rounds);

}  // namespace switchyard::moe
