#pragma once

#include <array>
#include <memory>

#include "moe/router.h"
#include "nn/attention.h"

namespace switchyard::moe {

struct SwitchHeadOptions {
  std::int64_t width = 0;       ///< D
  std::int64_t heads = 1;       ///< H
  std::int64_t head_width = 0;  ///< d; 0 means width / heads
  std::int64_t experts = 4;     ///< E per head
  std::int64_t k = 2;           ///< experts each token uses per head; unused when E = 1
  /// The projections that are sets of experts.
  std::vector<ProjectionKind> experts_on = {ProjectionKind::value, ProjectionKind::output};
  bool shared_selection = false;                     ///< one router for all of experts_on instead of one each
  SelectionKind selection = SelectionKind::sigmoid;  ///< sigmoid or softmax
  double expert_dropout = 0;
  double entropy_regularizer = 0;  ///< weight, per router
  nn::PositionOptions position;
  double dropout = 0;  ///< of attention weights
  double init_scale = 1;
};

/// One projection of all heads of a SwitchHead layer: a plain matrix, or E experts per head of which a routing picks k
/// per token and head. Parameter weight: [H d, D] plain ([D, H d] for the output), [H E, D, d] as experts ([H E, d,
/// D]).
class HeadProjection : public nn::Module {
 public:
  HeadProjection(ProjectionKind kind, const SwitchHeadOptions& options, Generator& generator);

  bool has_experts() const { return weight_.rank() == 3; }
  /// source [B, S, D] -> [B, S, H, d]; for the output [B, T, H, d] -> [B, T, D]. The routing is unused when plain.
  Variable forward(const Variable& source, const Routing& routing) const;

 private:
  bool is_output_;
  std::int64_t heads_;
  Variable weight_;
};

/// SwitchHead attention (Csordás et al., 2023, arXiv 2312.07987): few heads, each with one attention matrix, whose
/// value and output projections (or any others, by `experts_on`) are chosen from E experts per head and per token:
///   projected = sum over the k chosen e of gate_e (source W_e).
/// Queries and outputs are chosen by what the query side reads, keys and values by what the key side reads. With E = 1
/// all projections are plain and each head's result is multiplied by sigmoid(output_gate x).
///
/// Parameters: query, key, value, output, each with weight [H d, D] ([D, H d] for output) when plain, or
/// [H E, D, d] ([H E, d, D] for output) as experts, expert e of head h being number h E + e; <projection>_router.weight
/// [H E, D] per set of experts, or one router.weight; output_gate [H, D] with E = 1; position.projection.weight [H d,
/// D] with xl positions. Weights with n inputs start normal with deviation init_scale / sqrt(n); the output has n = H
/// d.
class SwitchHead : public nn::AttentionLayer {
 public:
  explicit SwitchHead(const SwitchHeadOptions& options, Generator& generator = nn::initial_weights());

  nn::LayerOutput forward(const Variable& x, const nn::AttentionArguments& arguments = {}) override;
  const SwitchHeadOptions& options() const { return options_; }

 private:
  class Pass;

  SwitchHeadOptions options_;
  std::array<std::unique_ptr<HeadProjection>, 4> projections_;  // by ProjectionKind
  std::array<std::unique_ptr<Router>, 4> routers_;              // null for a plain projection or a shared router
  std::unique_ptr<Router> shared_router_;
  Variable output_gate_;  // [H, D], only with one expert
  nn::AttentionCore core_;
};

}  // namespace switchyard::moe
