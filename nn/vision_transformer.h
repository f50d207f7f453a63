#pragma once

#include "nn/encoder.h"
#include "nn/linear.h"

namespace switchyard::nn {

/// Cuts images into squares: [B, C, H, W] -> [B, (H / P) (W / P), C P P], patches row by row from the top left, the
/// values of one ordered by channel, then row, then column. Throws Error where P does not divide H and W.
Tensor image_patches(const Tensor& images, std::int64_t patch_size);

struct VisionTransformerOptions {
  std::int64_t image_size = 224;  ///< height and width
  std::int64_t patch_size = 16;   ///< P
  std::int64_t channels = 3;      ///< C
  std::int64_t classes = 0;
  std::int64_t width = 0;
  double norm_epsilon = 1e-12;
  double dropout = 0;  ///< of the embeddings
  Initializer init = init::truncated_normal(0.02);
};

/// Vision transformer (Dosovitskiy et al., 2021): a linear map of each of N patches, a class token before them, learned
/// positions, an encoder with a last norm, a linear map of the class token to the classes. With pre-layernorm blocks
/// this is ViT. Parameters patch_embedding.weight [D, C P P], patch_embedding.bias, class_token [D], position.weight
/// [1 + N, D], layers.<i>.*, final_norm.*, classifier.weight [classes, D], classifier.bias.
class VisionTransformer : public Module {
 public:
  VisionTransformer(const VisionTransformerOptions& options, std::vector<std::unique_ptr<TransformerBlock>> blocks,
                    Generator& generator = initial_weights());

  /// Images [B, C, image_size, image_size] of any floating dtype -> the normalised class token and patches
  /// [B, 1 + N, D] and the sum of the blocks' regularisers. Throws Error for images of another shape.
  LayerOutput hidden(const Tensor& images);
  /// [B, classes].
  LayerOutput logits(const Tensor& images);
  /// Labels i64 [B].
  ClassifierLoss loss(const Tensor& images, const Tensor& labels) { return classifier_loss(logits(images), labels); }
  Encoder& encoder() { return encoder_; }
  /// N, patches of an image.
  std::int64_t patches() const { return position_.count() - 1; }

 private:
  Variable embed(const Tensor& images) const;

  VisionTransformerOptions options_;
  Linear patch_embedding_;
  Variable class_token_;
  LearnedPositions position_;
  Dropout dropout_;
  Encoder encoder_;
  Linear classifier_;
};

}  // namespace switchyard::nn
