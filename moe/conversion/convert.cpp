#include "moe/conversion/convert.h"

#include <algorithm>
#include <numeric>

#include "core/ops/index.h"
#include "core/ops/reduce.h"
#include "moe/conversion/router_training.h"
#include "moe/conversion/split.h"

namespace switchyard::moe {
namespace {

/// 0, 0, ..., 1, 1, ...: `expert_width` of each.
Tensor labels_in_order(std::int64_t neurons, std::int64_t expert_width) {
  std::vector<std::int64_t> labels;
  for (std::int64_t n = 0; n < neurons; ++n) labels.push_back(n / expert_width);
  return Tensor::from(labels, {neurons});
}

}  // namespace

std::unique_ptr<DynamicFeedForward> convert(const nn::FeedForward& dense, const ConversionOptions& options,
                                            Generator& generator) {
  const DenseWeights weights = weights_of(dense);
  const std::int64_t neurons = weights.up.size(0);
  check(options.expert_width >= 1 && neurons % options.expert_width == 0, "convert: expert_width is ",
        options.expert_width, ", expected a divisor of the layer's ", neurons, " neurons");
  const std::int64_t experts = neurons / options.expert_width;
  const Tensor labels = options.cluster
                            ? balanced_k_means(neuron_features(weights), experts, generator, options.clustering).labels
                            : labels_in_order(neurons, options.expert_width);
  const ExpertWeights split = split_into_experts(weights, labels.to(weights.up.device()), experts);
  auto layer = std::make_unique<DynamicFeedForward>(split, dense.activation(), options.router, generator);
  layer->to(weights.up.device());
  return layer;
}

std::vector<DynamicFeedForward*> convert_feed_forwards(const std::vector<nn::TransformerBlock*>& blocks,
                                                       const ConversionOptions& options, Generator& generator) {
  std::vector<std::unique_ptr<DynamicFeedForward>> layers;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto* dense = dynamic_cast<const nn::FeedForward*>(&blocks[i]->feed_forward());
    check(dense != nullptr, "convert_feed_forwards: the feed-forward of layer ", i, " is not a dense one");
    layers.push_back(convert(*dense, options, generator));
  }
  std::vector<DynamicFeedForward*> converted;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    converted.push_back(layers[i].get());
    blocks[i]->set_feed_forward(std::move(layers[i]));
  }
  return converted;
}

std::vector<DynamicFeedForward*> convert_feed_forwards(nn::LanguageModel& model, const ConversionOptions& options,
                                                       Generator& generator) {
  std::vector<nn::TransformerBlock*> blocks;
  for (std::int64_t i = 0; i < model.layers(); ++i) blocks.push_back(&model.block(i));
  return convert_feed_forwards(blocks, options, generator);
}

std::vector<DynamicFeedForward*> convert_projections(nn::Module& model, const ConversionOptions& options,
                                                     Generator& generator) {
  struct Conversion {
    nn::MultiHeadAttention* attention;
    nn::ProjectionKind kind;
    std::unique_ptr<DynamicFeedForward> layer;
  };
  std::vector<Conversion> conversions;
  for (const auto& [name, attention] : model.named_modules_of<nn::MultiHeadAttention>())
    for (const nn::ProjectionKind kind : nn::kProjectionKinds) {
      const nn::FeedForwardLayer* stand_in = attention->stand_in(kind);
      if (!stand_in) continue;
      const auto* dense = dynamic_cast<const nn::FeedForward*>(stand_in);
      check(dense != nullptr, "convert_projections: ", name, ".", nn::sublayer_name(kind), " is not a dense layer");
      conversions.push_back({attention, kind, convert(*dense, options, generator)});
    }
  std::vector<DynamicFeedForward*> converted;
  for (Conversion& conversion : conversions) {
    converted.push_back(conversion.layer.get());
    conversion.attention->set_stand_in(conversion.kind, std::move(conversion.layer));
  }
  return converted;
}

void order_by_norm(DynamicFeedForward& layer, const Tensor& rows) {
  const ExpertWeights weights = layer.weights();
  const Tensor norms = expert_output_norms(rows, weights, layer.activation());
  const std::vector<double> means = ops::mean(norms, {0}).to_vector<double>();
  std::vector<std::int64_t> order(means.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return means[static_cast<std::size_t>(a)] > means[static_cast<std::size_t>(b)];
  });
  const std::int64_t experts = weights.experts();
  const Tensor places = Tensor::from(order, {experts}).to(rows.device());
  for (const Tensor& tensor : {weights.up, weights.up_bias, weights.gate, weights.gate_bias, weights.down})
    if (tensor.defined())
      tensor.copy_from(
          ops::embedding(tensor.reshape({experts, tensor.numel() / experts}), places).view(tensor.shape()));
}

std::vector<DynamicFeedForward*> converted_layers(nn::Module& model) {
  std::vector<DynamicFeedForward*> layers;
  for (const auto& [name, layer] : model.named_modules_of<DynamicFeedForward>()) layers.push_back(layer);
  return layers;
}

void set_gates(nn::Module& model, const Gate& gate) {
  const std::vector<DynamicFeedForward*> layers = converted_layers(model);
  check(!layers.empty(), "set_gates: the model has no converted layer");
  for (DynamicFeedForward* layer : layers) layer->set_gate(gate);
}

}  // namespace switchyard::moe
