#include "train/classifier_config.h"

#include <algorithm>
#include <set>

#include "core/error.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

void describe_model(Schema& schema, ClassifierModelConfig& model) {
  schema.section("model", "the classifier: an encoder with a linear map to the classes of the training data");
  schema.choice("kind", model.kind, "what is classified");
  schema.integer("width", model.width, 1, 1 << 16, "channels of the residual stream (d)");
  schema.integer("layers", model.layers, 1, 1024, "attention + feedforward blocks");
  schema.integer("vocabulary_size", model.vocabulary_size, 0, 1 << 24,
                 "text_classifier: distinct tokens; 0: as many as the tokenizer has");
  schema.integer("context", model.context, 2, 1 << 20,
                 "text_classifier: tokens of a text; of longer texts the last ones are read");
  schema.integer(
      "segments", model.segments, 0, 1 << 16,
      "text_classifier: kinds of token that have an embedding, such as BERT's 2; the first is used; 0: none");
  schema.choice("pooling", model.pooling, "text_classifier: what a text is classified by");
  schema.boolean("pooler", model.pooler, "text_classifier: tanh of a linear map after pooling, as in BERT");
  schema.integer("image_size", model.image_size, 0, 1 << 14,
                 "image_classifier: height and width of the images; 0: as the data has them");
  schema.integer("channels", model.channels, 1, 1 << 10, "image_classifier: values of a pixel; IDX files have 1");
  schema.integer("patch_size", model.patch_size, 1, 1 << 14, "image_classifier: height and width of a patch");
  schema.choice("norm_placement", model.norm_placement,
                "normalise the input of each layer, or its sum with the layer's output (text_classifier only)");
  schema.number("norm_epsilon", model.norm_epsilon, 0, 1, "added to the variance inside norms");
  schema.share("dropout", model.dropout,
               "share of activations dropped after embedding, attention and feedforward, and before classification");
  schema.number("init_std", model.init_std, 0, 1000, "initial deviation of weights");

  schema.section("model.attention", "attention layers");
  schema.integer("heads", model.attention.heads, 1, 1024, "attention heads");
  schema.share("dropout", model.attention.dropout, "share of attention weights dropped");

  schema.section("model.feedforward", "feedforward layers");
  schema.choice("activation", model.feedforward.activation,
                {ops::Activation::relu, ops::Activation::gelu, ops::Activation::gelu_tanh, ops::Activation::silu},
                "the nonlinearity");
  schema.integer("width", model.feedforward.width, 0, 1 << 20, "hidden neurons; 0: width_multiplier");
  schema.number("width_multiplier", model.feedforward.width_multiplier, 0, 1024,
                "hidden neurons / model.width, rounded down");
}

void describe_data(Schema& schema, ClassifierDataConfig& data) {
  schema.section("data", "the examples; files are given unpacked");
  schema.text_list("classes", data.classes,
                   "names of the classes in the order of the model's outputs; none: the labels in the training data");
  schema.text_list("files", data.files, "text_classifier: files of label<TAB>text lines to train on");
  schema.text_list("validation_files", data.validation_files, "text_classifier: such files to validate on");
  schema.text("images", data.images, "image_classifier: IDX file of the images to train on");
  schema.text("labels", data.labels, "image_classifier: IDX file of their labels");
  schema.text("validation_images", data.validation_images, "image_classifier: IDX file of the images to validate on");
  schema.text("validation_labels", data.validation_labels, "image_classifier: IDX file of their labels");
  schema.number("mean", data.mean, -1e6, 1e6, "image_classifier: what grey values, 0 to 1, are reduced by");
  schema.number("deviation", data.deviation, 0, 1e6,
                "image_classifier: what they are divided by then; 0: mean and deviation of the training images");
  schema.integer("most_shift", data.most_shift, 0, 1 << 14,
                 "image_classifier: pixels that training images are moved by at most, along both axes");
  describe_tokenizer(schema, data.tokenizer);
}

void validate_classes(const std::vector<std::string>& classes) {
  if (classes.size() == 1)
    fail("config: data.classes: \"", classes[0],
         "\" alone is nothing to tell apart, expected at least two classes, or none");
  std::set<std::string> names;
  for (const std::string& name : classes)
    check(names.insert(name).second, "config: data.classes: \"", name, "\" is named twice, expected each class once");
}

void validate_data(const ClassifierConfig& config) {
  const ClassifierDataConfig& data = config.data;
  validate_classes(data.classes);
  if (config.model.kind == ClassifierKind::text_classifier) {
    check(!data.files.empty(), "config: data.files: is empty, expected files of label<TAB>text lines");
    check(!data.validation_files.empty(),
          "config: data.validation_files: is empty, expected files of label<TAB>text lines");
    validate_tokenizer(data.tokenizer);
  } else {
    const auto check_file = [](const char* key, const std::string& file) {
      check(!file.empty(), "config: data.", key, ": is empty, expected an IDX file");
    };
    check_file("images", data.images);
    check_file("labels", data.labels);
    check_file("validation_images", data.validation_images);
    check_file("validation_labels", data.validation_labels);
    if (config.model.image_size > 0) validate_shift(data, config.model.image_size);
  }
}

nn::EncoderBlockOptions block_options(const ClassifierModelConfig& config) {
  nn::EncoderBlockOptions options;
  options.width = config.width;
  options.layers = config.layers;
  options.heads = config.attention.heads;
  options.hidden = feedforward_width(config);
  options.activation = config.feedforward.activation;
  options.norm_placement = config.norm_placement;
  options.norm_epsilon = config.norm_epsilon;
  options.dropout = config.dropout;
  options.attention_dropout = config.attention.dropout;
  options.init = nn::init::truncated_normal(config.init_std);
  return options;
}

}  // namespace

Schema describe(ClassifierConfig& config) {
  Schema schema;
  describe_model(schema, config.model);
  describe_data(schema, config.data);
  describe_training(schema, config.training, "examples");
  describe_optimizer(schema, "optimizer", config.optimizer);
  describe_output(schema, config.output);
  return schema;
}

void validate(const ClassifierModelConfig& model) {
  check(model.attention.heads > 0 && model.width % model.attention.heads == 0,
        "config: model.attention.heads: ", model.attention.heads, " does not divide model.width ", model.width,
        ", expected a divisor of it");
  check(feedforward_width(model) > 0,
        "config: model.feedforward.width_multiplier: ", model.feedforward.width_multiplier,
        " leaves no neurons, expected more, or a width");
  check(model.kind == ClassifierKind::text_classifier || model.norm_placement == nn::NormPlacement::pre,
        "config: model.norm_placement: \"post\" is not possible with kind \"image_classifier\", expected \"pre\"");
}

void validate_shift(const ClassifierDataConfig& data, std::int64_t image_size) {
  check(data.most_shift < image_size, "config: data.most_shift: ", data.most_shift, " moves images of ", image_size,
        " x ", image_size, " out of sight, expected at most ", image_size - 1);
}

void validate(const ClassifierConfig& config) {
  validate(config.model);
  validate_data(config);
  validate_training(config.training, config.optimizer);
  validate_output(config.output);
}

bool is_classifier_config(const json::object& config) {
  const json::value* model = config.if_contains("model");
  const json::value* kind = model && model->is_object() ? model->get_object().if_contains("kind") : nullptr;
  const auto names = names_of(ClassifierKind{});
  return kind && kind->is_string() && std::ranges::count(names, std::string_view(kind->get_string())) > 0;
}

std::int64_t feedforward_width(const ClassifierModelConfig& config) {
  if (config.feedforward.width > 0) return config.feedforward.width;
  return static_cast<std::int64_t>(config.feedforward.width_multiplier * static_cast<double>(config.width));
}

std::unique_ptr<nn::TextClassifier> build_text_classifier(const ClassifierModelConfig& config,
                                                          std::int64_t vocabulary_size, std::int64_t classes,
                                                          Generator& generator) {
  check(config.vocabulary_size == 0 || config.vocabulary_size >= vocabulary_size,
        "config: model.vocabulary_size: ", config.vocabulary_size,
        " is too small, expected 0 or at least the tokenizer's ", vocabulary_size);
  nn::TextClassifierOptions options;
  options.vocabulary_size = std::max(vocabulary_size, config.vocabulary_size);
  options.positions = config.context;
  options.segments = config.segments;
  options.classes = classes;
  options.width = config.width;
  options.norm_epsilon = config.norm_epsilon;
  options.final_norm = config.norm_placement == nn::NormPlacement::pre;
  options.pooling = config.pooling;
  options.pooler = config.pooler;
  options.dropout = config.dropout;
  options.classifier_dropout = config.dropout;
  options.init = nn::init::truncated_normal(config.init_std);
  auto blocks = nn::dense_encoder_blocks(block_options(config), generator);
  return std::make_unique<nn::TextClassifier>(options, std::move(blocks), generator);
}

std::unique_ptr<nn::VisionTransformer> build_image_classifier(const ClassifierModelConfig& config,
                                                              std::int64_t image_size, std::int64_t classes,
                                                              Generator& generator) {
  check(config.image_size == 0 || config.image_size == image_size, "config: model.image_size: ", config.image_size,
        " is not that of the data, images of ", image_size, " x ", image_size);
  check(config.patch_size > 0 && image_size % config.patch_size == 0, "config: model.patch_size: ", config.patch_size,
        " does not divide the images' height and width ", image_size, ", expected a divisor of it");
  nn::VisionTransformerOptions options;
  options.image_size = image_size;
  options.patch_size = config.patch_size;
  options.channels = config.channels;
  options.classes = classes;
  options.width = config.width;
  options.norm_epsilon = config.norm_epsilon;
  options.dropout = config.dropout;
  options.init = nn::init::truncated_normal(config.init_std);
  auto blocks = nn::dense_encoder_blocks(block_options(config), generator);
  return std::make_unique<nn::VisionTransformer>(options, std::move(blocks), generator);
}

}  // namespace switchyard::train
