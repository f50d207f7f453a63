#pragma once

#include <array>
#include <boost/json/object.hpp>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "moe/language_model_config.h"
#include "train/config_sections.h"

/// The configuration of a language model's training run: one struct per section of the JSON file; member initialisers
/// are the defaults. What each key means and allows is declared in one place, describe() in config.cpp and
/// config_sections.cpp; --help-config prints it.
namespace switchyard::train {

/// random: windows drawn from anywhere, each once per epoch. contiguous: every batch row reads its own stream in order,
/// as a model with memory of the previous segment needs.
enum class DataMode : std::uint8_t { random, contiguous };

constexpr auto names_of(DataMode) { return std::array<std::string_view, 2>{"random", "contiguous"}; }

struct DataConfig {
  std::vector<std::string> files;  ///< empty: the corpus embedded in the program
  std::vector<std::string> validation_files;
  double validation_fraction = 0.05;
  std::int64_t validation_windows = 256;
  TokenizerConfig tokenizer;
  bool respect_documents = false;
  DataMode mode = DataMode::random;
};

struct LanguageModelTrainingConfig : TrainingConfig {
  std::int64_t gradient_accumulation = 1;
  bool recompute = false;
};

struct LanguageModelOutputConfig : OutputConfig {
  std::int64_t sample_length = 400;
  std::string sample_prompt;
  double sample_temperature = 0.8;
};

struct Config {
  moe::LanguageModelConfig model;
  DataConfig data;
  LanguageModelTrainingConfig training;
  OptimizerConfig optimizer;
  LanguageModelOutputConfig output;

  DType dtype() const { return dtype_of(training.dtype); }
};

/// The table of every key, bound to `config` (which must outlive it).
Schema describe(Config& config);

/// Throws Error for values that do not fit together; the schema has checked each by itself.
void validate(const Config& config);

}  // namespace switchyard::train
