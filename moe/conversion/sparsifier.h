#pragma once

#include <memory>
#include <string>
#include <vector>

#include "moe/conversion/sparsity.h"
#include "nn/feed_forward.h"

namespace switchyard::moe {

struct SparsityPenaltyOptions {
  SparsityMeasure measure = SparsityMeasure::square_hoyer;
  /// Layers with relu are penalised by their activations; others by how far what goes into the activation rises above
  /// this (see displaced()).
  double displacement = -10;
};

/// How sparse one layer was.
struct LayerSparsity {
  std::string name;  ///< the layer's path in the model
  SparsitySummary summary;
};

/// Watches dense feed-forwards of a model for as long as it lives: in training it adds a penalty to the loss, in
/// evaluation it counts how sparse the activations are.
class Sparsifier {
 public:
  /// Layers with their paths in the model. They must live longer, and no other Sparsifier may watch them.
  Sparsifier(const std::vector<std::pair<std::string, nn::FeedForward*>>& layers,
             const SparsityPenaltyOptions& options);
  ~Sparsifier();
  Sparsifier(const Sparsifier&) = delete;
  Sparsifier& operator=(const Sparsifier&) = delete;

  /// From now on `weight` times the mean of the layers' penalties is added to the loss. 0, the weight in the beginning:
  /// nothing is.
  void set_weight(double weight) { weight_ = weight; }
  /// What passed through in evaluation since the last call, layer by layer in the model's order. Waits for the device.
  std::vector<LayerSparsity> take_summaries();

 private:
  struct Layer {
    std::string name;
    nn::FeedForward* module;
    ActivationSparsity sparsity;
  };

  Variable observe(Layer& layer, const nn::Neurons& neurons) const;

  SparsityPenaltyOptions options_;
  double weight_ = 0;
  std::vector<std::unique_ptr<Layer>> layers_;
};

}  // namespace switchyard::moe
