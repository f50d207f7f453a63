#include "train/classifier_config.h"

#include <gtest/gtest.h>

#include "core/rng.h"
#include "tests/train/tiny_classifier.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;
namespace fs = std::filesystem;

TEST(ClassifierConfig, WritingAndReadingGivesTheSame) {
  const TemporaryFolder folder;
  for (ClassifierConfig config : {tiny_text_classifier(folder.path()), tiny_image_classifier(folder.path())}) {
    config.model.pooling = nn::Pooling::first_token;
    config.model.feedforward.activation = ops::Activation::gelu;
    EXPECT_EQ(to_json(config_from_json<ClassifierConfig>(to_json(config))), to_json(config));
    EXPECT_TRUE(is_classifier_config(to_json(config)));
  }
  EXPECT_FALSE(is_classifier_config({{"model", {{"kind", "decoder"}}}}));
  EXPECT_FALSE(is_classifier_config({{"model", 3}}));
  EXPECT_FALSE(is_classifier_config({}));
}

TEST(ClassifierConfig, TheConfigurationsOfTheRepositoryAreValid) {
  const fs::path configs = fs::path(SWITCHYARD_SOURCE_DIR) / "configs";
  const ClassifierConfig texts = load_config<ClassifierConfig>(configs / "movie-reviews.json");
  EXPECT_EQ(texts.model.kind, ClassifierKind::text_classifier);
  EXPECT_EQ(texts.output.name, "movie-reviews");
  const ClassifierConfig images =
      load_config<ClassifierConfig>(configs / "mnist10k-vit.json", {"training.device=cpu", "training.dtype=f32"});
  EXPECT_EQ(images.model.kind, ClassifierKind::image_classifier);
  Generator weights(1);
  EXPECT_EQ(build_image_classifier(images.model, 28, 10, weights)->patches(), 49);
}

TEST(ClassifierConfig, HelpNamesEveryKey) {
  ClassifierConfig config;
  const std::string help = config_help<ClassifierConfig>();
  const Schema schema = describe(config);
  for (const SchemaField& field : schema.fields())
    EXPECT_NE(help.find(std::string(field.path.substr(field.path.rfind('.') + 1)) + " ("), std::string::npos);
}

TEST(ClassifierConfig, ErrorsNameTheKey) {
  const TemporaryFolder folder;
  const ClassifierConfig texts = tiny_text_classifier(folder.path()), images = tiny_image_classifier(folder.path());
  const auto message = [](const ClassifierConfig& good, auto&& change) {
    ClassifierConfig config = good;
    change(config);
    return error_of([&] { validate(config); });
  };
  EXPECT_EQ(message(texts, [](ClassifierConfig& c) { c.model.attention.heads = 3; }),
            "config: model.attention.heads: 3 does not divide model.width 16, expected a divisor of it");
  EXPECT_EQ(message(texts, [](ClassifierConfig& c) { c.model.feedforward.width_multiplier = 0.01; }),
            "config: model.feedforward.width_multiplier: 0.01 leaves no neurons, expected more, or a width");
  EXPECT_EQ(message(texts, [](ClassifierConfig& c) { c.data.files.clear(); }),
            "config: data.files: is empty, expected files of label<TAB>text lines");
  EXPECT_EQ(message(texts, [](ClassifierConfig& c) { c.data.validation_files.clear(); }),
            "config: data.validation_files: is empty, expected files of label<TAB>text lines");
  EXPECT_EQ(message(images, [](ClassifierConfig& c) { c.data.validation_labels.clear(); }),
            "config: data.validation_labels: is empty, expected an IDX file");
  EXPECT_EQ(message(images, [](ClassifierConfig& c) { c.model.norm_placement = nn::NormPlacement::post; }),
            "config: model.norm_placement: \"post\" is not possible with kind \"image_classifier\", expected \"pre\"");
  EXPECT_EQ(message(images,
                    [](ClassifierConfig& c) {
                      c.model.image_size = 8;
                      c.data.most_shift = 8;
                    }),
            "config: data.most_shift: 8 moves images of 8 x 8 out of sight, expected at most 7");
  EXPECT_EQ(message(images, [](ClassifierConfig& c) { c.data.classes = {"a"}; }),
            "config: data.classes: \"a\" alone is nothing to tell apart, expected at least two classes, or none");
  EXPECT_EQ(message(texts,
                    [](ClassifierConfig& c) {
                      c.data.classes = {"a", "b", "a"};
                    }),
            "config: data.classes: \"a\" is named twice, expected each class once");
  EXPECT_EQ(message(images, [](ClassifierConfig& c) { c.training.device = "gpu"; }),
            "config: training.device: \"gpu\" is unknown, expected \"cpu\", \"cuda\" or \"cuda:<index>\"");
}

TEST(ClassifierConfig, BuildsWhatItNames) {
  ClassifierModelConfig config;
  config.width = 8;
  config.layers = 1;
  config.context = 6;
  config.attention.heads = 2;
  config.feedforward.width = 10;
  Generator weights(1);
  for (const nn::NormPlacement placement : {nn::NormPlacement::pre, nn::NormPlacement::post}) {
    config.norm_placement = placement;
    const auto model = build_text_classifier(config, 32, 3, weights);
    const std::int64_t norms =
        placement == nn::NormPlacement::pre ? 4 : 3;  // of embeddings, two of the block, the last
    const std::int64_t attention = 4 * (8 * 8 + 8), feed_forward = 8 * 10 + 10 + 10 * 8 + 8;
    EXPECT_EQ(model->parameter_count(), 32 * 8 + 6 * 8 + attention + feed_forward + norms * 16 + 3 * 8 + 3);
    const std::int64_t plain = model->parameter_count();
    ClassifierModelConfig larger = config;
    larger.vocabulary_size = 40;
    larger.segments = 2;
    larger.pooler = true;
    EXPECT_EQ(build_text_classifier(larger, 32, 3, weights)->parameter_count(), plain + 8 * 8 + 2 * 8 + 8 * 8 + 8);
    EXPECT_ERROR(build_text_classifier(larger, 41, 3, weights),
                 "config: model.vocabulary_size: 40 is too small, expected 0 or at least the tokenizer's 41");
  }
}

}  // namespace
}  // namespace switchyard::train
