#pragma once

#include <array>
#include <boost/json/object.hpp>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "moe/language_model_config.h"
#include "train/schema.h"

/// The configuration of a training run: one struct per section of the JSON file; member initialisers are the defaults.
/// What each key means and allows is declared in one place, describe() in config.cpp; --help-config prints it.
namespace switchyard::train {

enum class TokenizerKind : std::uint8_t { bytes, sentencepiece };
/// random: windows drawn from anywhere, each once per epoch. contiguous: every batch row reads its own stream in order,
/// as a model with memory of the previous segment needs.
enum class DataMode : std::uint8_t { random, contiguous };
enum class TrainingType : std::uint8_t { f32, bf16 };
enum class OptimizerKind : std::uint8_t { adamw, sgd };
enum class ScheduleKind : std::uint8_t { constant, linear, cosine, switchhead_warmup_then_cosine };

constexpr auto names_of(TokenizerKind) { return std::array<std::string_view, 2>{"bytes", "sentencepiece"}; }
constexpr auto names_of(DataMode) { return std::array<std::string_view, 2>{"random", "contiguous"}; }
constexpr auto names_of(TrainingType) { return std::array<std::string_view, 2>{"f32", "bf16"}; }
constexpr auto names_of(OptimizerKind) { return std::array<std::string_view, 2>{"adamw", "sgd"}; }
constexpr auto names_of(ScheduleKind) {
  return std::array<std::string_view, 4>{"constant", "linear", "cosine", "switchhead_warmup_then_cosine"};
}

struct TokenizerConfig {
  TokenizerKind kind = TokenizerKind::bytes;
  std::int64_t vocabulary_size = 8000;  ///< sentencepiece only: pieces to train where `model` is not given
  std::string model;                    ///< sentencepiece only: a trained .model file
};

struct DataConfig {
  std::vector<std::string> files;  ///< empty: the corpus embedded in the program
  std::vector<std::string> validation_files;
  double validation_fraction = 0.05;
  std::int64_t validation_windows = 256;
  TokenizerConfig tokenizer;
  bool respect_documents = false;
  DataMode mode = DataMode::random;
};

struct TrainingConfig {
  std::int64_t steps = 1000;
  std::int64_t batch = 16;
  std::int64_t gradient_accumulation = 1;
  TrainingType dtype = TrainingType::f32;
  std::string device = "cpu";
  std::int64_t seed = 1;
  bool recompute = false;
  double clip = 0.25;
  std::int64_t log_every = 10;
  std::int64_t validate_every = 250;
  std::int64_t checkpoint_every = 250;
  std::int64_t keep_checkpoints = 2;
};

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::cosine;
  std::int64_t warmup_steps = 0;
  double final_fraction = 0.0;
};

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::adamw;
  double learning_rate = 2.5e-4;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double momentum = 0.0;
  double weight_decay = 0.01;
  bool decay_all = false;
  ScheduleConfig schedule;
};

struct OutputConfig {
  std::string folder = "runs";
  std::string name;
  std::int64_t sample_length = 400;
  std::string sample_prompt;
  double sample_temperature = 0.8;
};

struct Config {
  moe::LanguageModelConfig model;
  DataConfig data;
  TrainingConfig training;
  OptimizerConfig optimizer;
  OutputConfig output;

  DType dtype() const { return training.dtype == TrainingType::bf16 ? DType::bf16 : DType::f32; }
};

/// The table of every key, bound to `config` (which must outlive it).
Schema describe(Config& config);

/// Reads `--set`-style overrides ("model.layers=4"; the right side is JSON, or else a plain string) into `values`.
void apply_overrides(boost::json::object& values, const std::vector<std::string>& overrides);

/// Defaults, then `values`, then a check of the whole. Throws Error with one line naming key, value and what is
/// allowed.
Config config_from_json(const boost::json::object& values);

/// As config_from_json, from the text of a file named `source` in messages.
Config parse_config(std::string_view text, const std::string& source, const std::vector<std::string>& overrides = {});

/// As parse_config, from a file of at most 1 MiB. Where the config gives no output.name, the file's stem becomes it.
Config load_config(const std::filesystem::path& path, const std::vector<std::string>& overrides = {});

/// Every key with its value. config_from_json of it gives the same config again.
boost::json::object to_json(const Config& config);

/// What --help-config prints: every key with type, default, what is allowed, and meaning.
std::string config_help();

/// Throws Error for values that do not fit together; the schema has checked each by itself.
void validate(const Config& config);

}  // namespace switchyard::train
