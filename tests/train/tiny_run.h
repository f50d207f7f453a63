#pragma once

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "tests/support/device.h"
#include "tests/support/temporary_folder.h"
#include "train/trainer.h"

namespace switchyard::train {

/// Some kilobytes of text in several documents, always the same.
inline std::string tiny_text() {
  std::string text;
  for (int i = 0; i < 240; ++i) {
    text += "line " + std::to_string(i) + " of " + std::to_string(i * i % 97) + " words, ";
    text += i % 12 == 11 ? "the last.\n\n<|doc|>\n" : "and more.\n";
  }
  return text;
}

/// A SwitchAll model of some thousand parameters with every kind of dropout, trained on tiny_text() in `folder`.
inline Config tiny_config(const std::filesystem::path& folder) {
  if (!std::filesystem::exists(folder / "text.txt")) testing::write_bytes(folder / "text.txt", tiny_text());
  Config config;
  config.model.width = 16;
  config.model.layers = 2;
  config.model.context = 16;
  config.model.dropout = 0.1;
  config.model.attention.heads = 2;
  config.model.attention.head_width = 8;
  config.model.attention.experts = 3;
  config.model.attention.expert_dropout = 0.3;
  config.model.attention.dropout = 0.1;
  config.model.feedforward.experts = 4;
  config.model.feedforward.expert_width = 8;
  config.model.feedforward.expert_dropout = 0.3;
  config.model.feedforward.entropy_regularizer = 0.01;
  config.data.files = {(folder / "text.txt").string()};
  config.data.validation_windows = 8;
  config.training.device = testing::text_of(default_device());
  config.training.steps = 12;
  config.training.batch = 4;
  config.training.log_every = 1;
  config.training.validate_every = 0;
  config.training.checkpoint_every = 0;
  config.training.keep_checkpoints = 10;
  config.optimizer.learning_rate = 0.01;
  config.optimizer.schedule.warmup_steps = 3;
  config.output.folder = (folder / "runs").string();
  config.output.name = "tiny";
  config.output.sample_length = 8;
  validate(config);
  return config;
}

/// A file that swallows progress lines.
inline std::FILE* nowhere() {
  static const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen("/dev/null", "w"), std::fclose);
  return file.get();
}

/// Opens or makes the text of a run, builds the trainer, and trains to the end.
inline Trainer::Outcome train_run(const RunFolder& run, const Config& config) {
  const TokenizedText text = prepare_text(config, run.text_path(), [](const std::string&) {});
  return Trainer(run, config, text, nowhere()).run();
}

inline std::filesystem::path checkpoint_of(const std::filesystem::path& run, std::int64_t step) {
  return RunFolder::checkpoints_path(run) / checkpoint_name(step);
}

}  // namespace switchyard::train
