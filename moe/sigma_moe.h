#pragma once

#include "moe/router.h"
#include "nn/layer.h"

namespace switchyard::moe {

struct SigmaMoeOptions {
  std::int64_t width = 0;         ///< D
  std::int64_t experts = 0;       ///< E
  std::int64_t expert_width = 0;  ///< F, neurons per expert
  std::int64_t k = 1;
  std::int64_t output_width = 0;  ///< 0: width
  ops::Activation activation = ops::Activation::relu;
  bool bias = false;  ///< one per neuron, and one of the output
  SelectionKind selection = SelectionKind::sigmoid;
  std::int64_t sinkhorn_rounds = 3;
  double expert_dropout = 0;
  double entropy_regularizer = 0;
  double init_scale = 1;
};

/// The Mixture-of-Experts feed-forward of Csordás et al., 2023 (arXiv 2310.10837):
///   y = sum over the k chosen e of gate_e activation(x keys_e + bias_e) values_e, plus output_bias.
/// No capacity limit: no token is dropped. Parameters keys [E, D, F], values [E, F, output width], router.weight [E,
/// D], and with `bias` bias [E, F], output_bias.
///
/// As the authors do, keys start normal with deviation init_scale / sqrt(D) and values with init_scale / sqrt(E F), as
/// if the experts were one dense layer of E F neurons. Between the two products there is one row per pair: N k F
/// values.
class SigmaMoe : public nn::FeedForwardLayer {
 public:
  explicit SigmaMoe(const SigmaMoeOptions& options, Generator& generator = nn::initial_weights());

  /// x [B, T, D] -> [B, T, output width].
  nn::LayerOutput forward(const Variable& x) override;
  Router& router() { return router_; }
  const SigmaMoeOptions& options() const { return options_; }

 private:
  SigmaMoeOptions options_;
  Router router_;
  Variable keys_, values_, bias_, output_bias_;
};

}  // namespace switchyard::moe
