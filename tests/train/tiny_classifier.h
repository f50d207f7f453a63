#pragma once

#include <filesystem>
#include <random>
#include <string>

#include "tests/support/device.h"
#include "tests/support/temporary_folder.h"
#include "tests/train/tiny_run.h"
#include "train/task_trainer.h"
#include "train/tasks/classification_task.h"

namespace switchyard::train {

/// Sections that the tiny classifiers share.
inline ClassifierConfig tiny_classifier(const std::filesystem::path& folder) {
  ClassifierConfig config;
  config.model.width = 16;
  config.model.layers = 2;
  config.model.dropout = 0.1;
  config.model.attention = {.heads = 2, .dropout = 0.1};
  config.training.device = testing::text_of(default_device());
  config.training.steps = 12;
  config.training.batch = 6;
  config.training.log_every = 1;
  config.training.validate_every = 5;
  config.training.checkpoint_every = 6;
  config.training.keep_checkpoints = 10;
  config.optimizer.learning_rate = 0.01;
  config.optimizer.schedule.warmup_steps = 3;
  config.output.folder = (folder / "runs").string();
  config.output.name = "tiny";
  return config;
}

/// Texts of three classes, told apart by one letter each, of 1 to 30 letters; the longest do not fit the context.
inline std::string tiny_labelled_texts(unsigned seed, int count) {
  std::mt19937 random(seed);
  std::string lines;
  for (int i = 0; i < count; ++i) {
    const unsigned label = random() % 3;
    lines += "class" + std::to_string(label) + '\t';
    for (unsigned letter = 0, letters = 1 + random() % 30; letter < letters; ++letter)
      lines += letter % 2 == 0 ? static_cast<char>('x' + label) : static_cast<char>('a' + random() % 20);
    lines += '\n';
  }
  return lines;
}

inline ClassifierConfig tiny_text_classifier(const std::filesystem::path& folder) {
  testing::write_bytes(folder / "train.tsv", tiny_labelled_texts(1, 40));
  testing::write_bytes(folder / "valid.tsv", tiny_labelled_texts(2, 20));
  ClassifierConfig config = tiny_classifier(folder);
  config.model.kind = ClassifierKind::text_classifier;
  config.model.context = 20;
  config.data.files = {(folder / "train.tsv").string()};
  config.data.validation_files = {(folder / "valid.tsv").string()};
  validate(config);
  return config;
}

/// The bytes of an IDX file with these sizes.
inline std::string idx_bytes(const std::vector<std::uint32_t>& sizes, const std::string& values) {
  std::string bytes = {0, 0, 8, static_cast<char>(sizes.size())};
  for (const std::uint32_t size : sizes)
    for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(size >> shift);
  return bytes + values;
}

/// Images of 8 x 8 pixels, noise of four brightnesses, which are the labels.
inline void write_tiny_images(const std::filesystem::path& folder, const std::string& name, unsigned seed,
                              std::uint32_t count) {
  std::mt19937 random(seed);
  std::string pixels, labels;
  for (std::uint32_t i = 0; i < count; ++i) {
    const unsigned label = random() % 4;
    labels += static_cast<char>(label);
    for (int pixel = 0; pixel < 64; ++pixel) pixels += static_cast<char>(60 * label + random() % 60);
  }
  testing::write_bytes(folder / (name + "-images"), idx_bytes({count, 8, 8}, pixels));
  testing::write_bytes(folder / (name + "-labels"), idx_bytes({count}, labels));
}

inline ClassifierConfig tiny_image_classifier(const std::filesystem::path& folder) {
  write_tiny_images(folder, "train", 1, 40);
  write_tiny_images(folder, "valid", 2, 20);
  ClassifierConfig config = tiny_classifier(folder);
  config.model.kind = ClassifierKind::image_classifier;
  config.data.images = (folder / "train-images").string();
  config.data.labels = (folder / "train-labels").string();
  config.data.validation_images = (folder / "valid-images").string();
  config.data.validation_labels = (folder / "valid-labels").string();
  config.data.most_shift = 1;
  validate(config);
  return config;
}

inline std::unique_ptr<ClassificationTask> tiny_task(const ClassifierConfig& config, const RunFolder& run) {
  return new_classification_task(config, run.path(), [](const std::string&) {});
}

inline RunFolder tiny_classifier_run(const ClassifierConfig& config) {
  return RunFolder::create(config.output, to_json(config));
}

/// Trains a run to the end of `config`; returns the last validation.
inline Score train_classifier(const RunFolder& run, const ClassifierConfig& config) {
  const auto task = tiny_task(config, run);
  TaskTrainer trainer(run, *task, config.training, config.optimizer, to_json(config), nowhere());
  EXPECT_TRUE(trainer.run());
  return trainer.last_validation().value_or(Score{});
}

}  // namespace switchyard::train
