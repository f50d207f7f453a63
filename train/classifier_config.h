#pragma once

#include <memory>

#include "core/ops/elementwise.h"
#include "nn/text_classifier.h"
#include "nn/vision_transformer.h"
#include "train/config_sections.h"

/// The configuration of a classifier's training run; keys are named as in a language model's where they mean the same.
/// describe() in classifier_config.cpp says what each means and allows.
namespace switchyard::train {

enum class ClassifierKind : std::uint8_t { text_classifier, image_classifier };

constexpr auto names_of(ClassifierKind) {
  return std::array<std::string_view, 2>{"text_classifier", "image_classifier"};
}

struct ClassifierAttentionConfig {
  std::int64_t heads = 4;
  double dropout = 0.0;
};

struct ClassifierFeedForwardConfig {
  ops::Activation activation = ops::Activation::relu;
  std::int64_t width = 0;
  double width_multiplier = 4.0;
};

/// An encoder with a classifier on top: nn::TextClassifier or nn::VisionTransformer.
struct ClassifierModelConfig {
  ClassifierKind kind = ClassifierKind::text_classifier;
  std::int64_t width = 128;
  std::int64_t layers = 4;
  // text_classifier
  std::int64_t vocabulary_size = 0;  ///< 0: the tokenizer's
  std::int64_t context = 256;        ///< tokens of a text
  std::int64_t segments = 0;         ///< of which the texts' tokens are all in the first
  nn::Pooling pooling = nn::Pooling::mean;
  bool pooler = false;
  // image_classifier
  std::int64_t image_size = 0;  ///< height and width; 0: that of the images
  std::int64_t channels = 1;
  std::int64_t patch_size = 4;
  // both
  nn::NormPlacement norm_placement = nn::NormPlacement::pre;  ///< image_classifier: pre
  double norm_epsilon = 1e-5;
  double dropout = 0.0;
  double init_std = 0.02;
  ClassifierAttentionConfig attention;
  ClassifierFeedForwardConfig feedforward;
};

struct ClassifierDataConfig {
  std::vector<std::string> classes;
  // text_classifier
  std::vector<std::string> files, validation_files;
  TokenizerConfig tokenizer;
  // image_classifier
  std::string images, labels, validation_images, validation_labels;
  double mean = 0.0;
  double deviation = 0.0;  ///< 0: mean and deviation of the training images
  std::int64_t most_shift = 0;
};

struct ClassifierConfig {
  ClassifierModelConfig model;
  ClassifierDataConfig data;
  TrainingConfig training;
  OptimizerConfig optimizer;
  OutputConfig output;
};

/// The table of every key, bound to `config` (which must outlive it).
Schema describe(ClassifierConfig& config);

/// Throws Error for values that do not fit together; the schema has checked each by itself.
void validate(const ClassifierConfig& config);
/// As validate, of the section "model" alone.
void validate(const ClassifierModelConfig& model);
/// Throws Error where data.most_shift may leave nothing of images of that height and width; validate() knows them only
/// where model.image_size says so.
void validate_shift(const ClassifierDataConfig& data, std::int64_t image_size);

/// Whether `config`, of a run of any kind, is a classifier's.
bool is_classifier_config(const boost::json::object& config);

/// Hidden neurons of a feed-forward.
std::int64_t feedforward_width(const ClassifierModelConfig& config);

/// A new model with weights drawn from `generator`, for the kind that the function names and a tokenizer of that many
/// tokens. Throws Error where the config has room for fewer.
std::unique_ptr<nn::TextClassifier> build_text_classifier(const ClassifierModelConfig& config,
                                                          std::int64_t vocabulary_size, std::int64_t classes,
                                                          Generator& generator);
/// Likewise, for images of that height and width. Throws Error where the config says another, or the patches do not
/// divide them.
std::unique_ptr<nn::VisionTransformer> build_image_classifier(const ClassifierModelConfig& config,
                                                              std::int64_t image_size, std::int64_t classes,
                                                              Generator& generator);

}  // namespace switchyard::train
