#include "nn/vision_transformer.h"

#include "autograd/ops/elementwise.h"
#include "autograd/ops/shape.h"
#include "core/name_scope.h"

namespace switchyard::nn {
namespace {

const VisionTransformerOptions& checked(const VisionTransformerOptions& options) {
  check(options.channels > 0 && options.patch_size > 0 && options.image_size >= options.patch_size &&
            options.image_size % options.patch_size == 0,
        "VisionTransformer: ", options.channels, " channels, image size ", options.image_size, ", patch size ",
        options.patch_size, ", expected at least 1 and patches that divide the image");
  return options;
}

std::int64_t patch_count(const VisionTransformerOptions& options) {
  const std::int64_t side = options.image_size / options.patch_size;
  return side * side;
}

}  // namespace

Tensor image_patches(const Tensor& images, std::int64_t patch_size) {
  check(images.defined() && images.rank() == 4, "image_patches: images are ", images.shape(),
        ", expected [batch, channels, height, width]");
  const std::int64_t batch = images.size(0), channels = images.size(1), height = images.size(2), width = images.size(3);
  check(patch_size > 0 && height % patch_size == 0 && width % patch_size == 0, "image_patches: images ", images.shape(),
        " do not divide into patches of ", patch_size);
  const std::int64_t rows = height / patch_size, columns = width / patch_size;
  return images.reshape({batch, channels, rows, patch_size, columns, patch_size})
      .permute({0, 2, 4, 1, 3, 5})
      .reshape({batch, rows * columns, channels * patch_size * patch_size});
}

VisionTransformer::VisionTransformer(const VisionTransformerOptions& options,
                                     std::vector<std::unique_ptr<TransformerBlock>> blocks, Generator& generator)
    : options_(checked(options)),
      patch_embedding_(options.channels * options.patch_size * options.patch_size, options.width, true, options.init,
                       generator),
      class_token_(register_parameter("class_token", options.init({options.width}, generator), false)),
      position_(1 + patch_count(options), options.width, options.init, generator),
      dropout_(options.dropout),
      encoder_(std::move(blocks), std::make_unique<LayerNorm>(options.width, options.norm_epsilon)),
      classifier_(options.width, options.classes, true, options.init, generator) {
  register_module("patch_embedding", patch_embedding_);
  register_module("position", position_);
  register_module("dropout", dropout_);
  register_module("", encoder_);
  register_module("classifier", classifier_);
}

Variable VisionTransformer::embed(const Tensor& images) const {
  const std::int64_t size = options_.image_size;
  check(images.defined() && images.rank() == 4 && is_floating(images.dtype()) &&
            images.shape() == Shape{images.size(0), options_.channels, size, size},
        "VisionTransformer: images are ", images.defined() ? name_of(images.dtype()) : "none", " ", images.shape(),
        ", expected floating [batch, ", options_.channels, ", ", size, ", ", size, "]");
  NameScope scope("embedding");
  const Tensor squares = image_patches(images, options_.patch_size).to(class_token_.dtype());
  const Variable patches = patch_embedding_.forward(Variable(squares));
  const Variable class_tokens = broadcast_to(class_token_, {images.size(0), 1, options_.width});
  return dropout_.forward(concat({class_tokens, patches}, 1) + position_.forward(1 + this->patches()));
}

LayerOutput VisionTransformer::hidden(const Tensor& images) { return encoder_.forward(embed(images)); }

LayerOutput VisionTransformer::logits(const Tensor& images) {
  const LayerOutput encoded = hidden(images);
  NameScope scope("classifier");
  const Variable first = reshape(slice(encoded.output, 1, 0, 1), {images.size(0), options_.width});
  return {classifier_.forward(first), encoded.regularizer};
}

}  // namespace switchyard::nn
