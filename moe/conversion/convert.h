#pragma once

#include <vector>

#include "moe/conversion/clustering.h"
#include "moe/conversion/dynamic_feed_forward.h"
#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "nn/transformer.h"

namespace switchyard::moe {

struct ConversionOptions {
  std::int64_t expert_width = 24;  ///< S, neurons per expert; divides the width of every feed-forward
  bool cluster = true;             ///< false: each expert takes S neurons that follow one another, as they are
  ClusteringOptions clustering;
  NormRouterOptions router;  ///< width and experts are those of each layer
};

/// The same function as `dense`, its neurons grouped into experts, by balanced k-means on their weights. On dense's
/// device and in its dtype; the router is untrained and the gate is `all`. Throws Error where expert_width does not
/// divide the number of neurons.
std::unique_ptr<DynamicFeedForward> convert(const nn::FeedForward& dense, const ConversionOptions& options,
                                            Generator& generator = nn::initial_weights());

/// Replaces the feed-forward of every block, which must be dense, and returns the new layers in that order. The
/// function of each block stays as it was until a gate is set. Throws Error, with all blocks unchanged, where a layer
/// cannot be converted.
std::vector<DynamicFeedForward*> convert_feed_forwards(const std::vector<nn::TransformerBlock*>& blocks,
                                                       const ConversionOptions& options,
                                                       Generator& generator = nn::initial_weights());
/// Those of all blocks of `model`.
std::vector<DynamicFeedForward*> convert_feed_forwards(nn::LanguageModel& model, const ConversionOptions& options,
                                                       Generator& generator = nn::initial_weights());

/// Replaces every stand-in for a projection of attention below `model`, which must be dense, in the same way. Returns
/// the new layers in the model's order; none where no projection has a stand-in.
std::vector<DynamicFeedForward*> convert_projections(nn::Module& model, const ConversionOptions& options,
                                                     Generator& generator = nn::initial_weights());

/// Puts a layer's experts in order of the mean norm of their outputs on rows [N, D], largest first: those that are
/// seldom worth running end up as neighbours at the end, where a GPU finds whole blocks of them to leave out. The
/// layer's function stays the same. For layers whose routers are not trained yet: routers know experts by their place.
void order_by_norm(DynamicFeedForward& layer, const Tensor& rows);

/// The converted layers of a model, in its order.
std::vector<DynamicFeedForward*> converted_layers(nn::Module& model);

/// One gate for every converted layer of a model. Throws Error when there is none, or one refuses the gate.
void set_gates(nn::Module& model, const Gate& gate);

}  // namespace switchyard::moe
