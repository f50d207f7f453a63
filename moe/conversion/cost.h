#pragma once

#include <string>
#include <vector>

#include "moe/conversion/dynamic_feed_forward.h"

namespace switchyard::moe {

/// Multiply-adds of one token in a converted layer, as the authors of D2DMoE count them (D width, E experts of S
/// neurons, W the router's width).
struct DynamicCost {
  /// Router products D W + (depth - 2) W^2 + W E, 4 E + 1 for its absolute values and the gate, and last_bias's D.
  /// (The router's biases and inner activations are not counted.)
  double without_experts = 0;
  /// 2 D S + S + D (b1; adding the result up), and S for an activation other than relu; D S + S more for GLU.
  double per_expert = 0;
  /// The layer before conversion: 2 D E S, and E S for an activation other than relu; D E S + E S more for GLU.
  double dense = 0;

  double per_token(double experts_run) const { return without_experts + experts_run * per_expert; }
};
/// What the layer's sizes give.
DynamicCost cost_of(const DynamicFeedForward& layer);
/// Multiply-adds per token by the choices that the layer's statistics counted. Throws Error when none were.
double measured_cost(const DynamicFeedForward& layer);

/// A layer of a model that conversion may replace: the feed-forward of a block, or a projection of its attention.
struct ConvertibleLayer {
  std::string name;                         ///< its path: "layers.3.feed_forward", "layers.3.attention.query"
  DynamicFeedForward* converted = nullptr;  ///< null while it is dense
  /// Multiply-adds per token before conversion: DynamicCost::dense of a feed-forward, inputs times outputs of a
  /// projection.
  double dense = 0;
  /// The same of the dense layer that is there now; 0 where it was converted.
  double unconverted = 0;

  /// Multiply-adds per token as the layer is now: measured_cost() of a converted one.
  double measured() const { return converted ? measured_cost(*converted) : unconverted; }
};
/// Those of all blocks, in the model's order. Layers that are neither dense nor converted, such as sets of experts that
/// were trained as such, are left out.
std::vector<ConvertibleLayer> convertible_layers(nn::Module& model);

}  // namespace switchyard::moe
