#include "moe/conversion/projection.h"

#include <algorithm>
#include <cmath>

namespace switchyard::moe {
namespace {

/// x to the nearest integer, halves to the even one, whatever the floating-point environment.
double round_half_to_even(double x) { return x - std::remainder(x, 1.0); }

std::string name_in(const std::string& attention, nn::ProjectionKind kind) {
  return attention + (attention.empty() ? "" : ".") + nn::sublayer_name(kind);
}

}  // namespace

std::int64_t projection_width(std::int64_t inputs, std::int64_t outputs, double flops_factor) {
  check(inputs >= 1 && outputs >= 1, "projection_width: ", inputs, " inputs and ", outputs,
        " outputs, expected 1 or more");
  check(std::isfinite(flops_factor) && flops_factor > 0, "projection_width: flops_factor is ", flops_factor,
        ", expected a positive number");
  const auto in = static_cast<double>(inputs), out = static_cast<double>(outputs);
  const double width = round_half_to_even(flops_factor * (in * out + out) / (in + out + 1));
  check(width >= 1, "projection_width: flops_factor ", flops_factor, " leaves no neuron for ", inputs, " inputs and ",
        outputs, " outputs");
  return static_cast<std::int64_t>(width);
}

std::unique_ptr<nn::FeedForward> stand_in_for(const nn::Linear& projection, const StandInOptions& options,
                                              Generator& generator) {
  const Tensor weight = projection.weight().data();
  const std::int64_t outputs = weight.size(0), inputs = weight.size(1);
  const std::int64_t width = projection_width(inputs, outputs, options.flops_factor);
  check(options.multiple >= 1 && options.multiple <= width, "stand_in_for: the hidden width is to be a multiple of ",
        options.multiple, ", expected 1 to ", width, ", what flops_factor ", options.flops_factor, " gives");
  nn::FeedForwardOptions feed_forward;
  feed_forward.width = inputs;
  feed_forward.outputs = outputs;
  feed_forward.hidden = width - width % options.multiple;
  feed_forward.activation = options.activation;
  feed_forward.bias = true;
  feed_forward.residual = options.residual;
  auto layer = std::make_unique<nn::FeedForward>(feed_forward, generator);
  layer->to(weight.dtype());
  layer->to(weight.device());
  return layer;
}

std::vector<ProjectionPlace> linear_projections(nn::Module& model, const std::vector<nn::ProjectionKind>& kinds) {
  std::vector<ProjectionPlace> places;
  for (const auto& [path, attention] : model.named_modules_of<nn::MultiHeadAttention>())
    for (const nn::ProjectionKind kind : nn::kProjectionKinds) {
      if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) continue;
      const std::string name = name_in(path, kind);
      check(attention->linear(kind) != nullptr, "projections: ", name, " has a stand-in already");
      places.push_back({name, attention, kind});
    }
  check(!places.empty(), "projections: the model has no dense attention, or no kind of projection is named");
  return places;
}

std::vector<std::pair<std::string, nn::FeedForward*>> dense_stand_ins(nn::Module& model) {
  std::vector<std::pair<std::string, nn::FeedForward*>> layers;
  for (const auto& [path, attention] : model.named_modules_of<nn::MultiHeadAttention>())
    for (const nn::ProjectionKind kind : nn::kProjectionKinds)
      if (auto* layer = dynamic_cast<nn::FeedForward*>(attention->stand_in(kind)))
        layers.emplace_back(name_in(path, kind), layer);
  return layers;
}

void replace_projections(nn::Module& model, const StandInOptions& options, Generator& generator) {
  for (const ProjectionPlace& place : linear_projections(model, options.kinds))
    place.attention->set_stand_in(place.kind, stand_in_for(*place.attention->linear(place.kind), options, generator));
}

}  // namespace switchyard::moe
