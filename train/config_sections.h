#pragma once

#include <array>
#include <boost/json/object.hpp>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "train/schema.h"

/// The sections that configurations of every kind of run share, and how a configuration comes from a file and is
/// written again. A configuration is a struct of sections whose member initialisers are the defaults. Beside it stand
/// describe(), the table of its keys, and validate(), which throws Error for values that do not fit together.
namespace switchyard::train {

/// transformers: a tokenizer.json of that library; none: of an imported model, whose tokenizer is of a kind not known
/// here; whatever needs text refuses it.
enum class TokenizerKind : std::uint8_t { bytes, sentencepiece, transformers, none };
enum class TrainingType : std::uint8_t { f32, bf16 };
enum class OptimizerKind : std::uint8_t { adamw, sgd };
enum class ScheduleKind : std::uint8_t { constant, linear, cosine, switchhead_warmup_then_cosine };

constexpr auto names_of(TokenizerKind) {
  return std::array<std::string_view, 4>{"bytes", "sentencepiece", "transformers", "none"};
}
constexpr auto names_of(TrainingType) { return std::array<std::string_view, 2>{"f32", "bf16"}; }
constexpr auto names_of(OptimizerKind) { return std::array<std::string_view, 2>{"adamw", "sgd"}; }
constexpr auto names_of(ScheduleKind) {
  return std::array<std::string_view, 4>{"constant", "linear", "cosine", "switchhead_warmup_then_cosine"};
}

struct TokenizerConfig {
  TokenizerKind kind = TokenizerKind::bytes;
  std::int64_t vocabulary_size = 8000;  ///< sentencepiece only: pieces to train where `model` is not given
  std::string model;                    ///< sentencepiece: a trained .model file; transformers: a tokenizer.json
};

struct TrainingConfig {
  std::int64_t steps = 1000;
  std::int64_t batch = 16;
  TrainingType dtype = TrainingType::f32;
  std::string device = "cpu";
  std::int64_t seed = 1;
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
};

DType dtype_of(TrainingType type);

/// Each declares one section with its keys; a caller may go on with keys of its own. `examples` says what a batch
/// consists of: "windows".
void describe_tokenizer(Schema& schema, TokenizerConfig& tokenizer);
void describe_training(Schema& schema, TrainingConfig& training, const std::string& examples);
void describe_output(Schema& schema, OutputConfig& output);
/// As section `path`, "optimizer" in most configurations.
void describe_optimizer(Schema& schema, const std::string& path, OptimizerConfig& optimizer);

/// Throw Error for values that do not fit together.
void validate_tokenizer(const TokenizerConfig& tokenizer);
void validate_training(const TrainingConfig& training, const OptimizerConfig& optimizer);
void validate_output(const OutputConfig& output);
/// `path` as of describe_optimizer; for `steps` updates, which the key `steps_key` gives.
void validate_optimizer(const std::string& path, const OptimizerConfig& optimizer, const std::string& steps_key,
                        std::int64_t steps);

/// Reads `--set`-style overrides ("model.layers=4"; the right side is JSON, or else a plain string) into `values`.
void apply_overrides(boost::json::object& values, const std::vector<std::string>& overrides);

/// The JSON object in `text`, a file named `source` in messages, with overrides.
boost::json::object parse_config_object(std::string_view text, const std::string& source,
                                        const std::vector<std::string>& overrides);

/// As parse_config_object, from a file of at most 1 MiB.
boost::json::object load_config_object(const std::filesystem::path& path, const std::vector<std::string>& overrides);

/// The name of a run whose configuration, the file at `path`, gives none: the file's stem, as far as a folder may be
/// called that.
std::string default_run_name(const std::filesystem::path& path);

template <class T>
concept Configuration = requires(T& config) {
  { describe(config) } -> std::same_as<Schema>;
  validate(config);
};

/// Defaults, then `values`, then a check of the whole. Throws Error with one line naming key, value and what is
/// allowed.
template <Configuration T>
T config_from_json(const boost::json::object& values) {
  T config;
  describe(config).read(values);
  validate(config);
  return config;
}

/// As config_from_json, from the text of a file named `source` in messages.
template <Configuration T>
T parse_config(std::string_view text, const std::string& source, const std::vector<std::string>& overrides = {}) {
  return config_from_json<T>(parse_config_object(text, source, overrides));
}

/// As parse_config, from a file of at most 1 MiB. Where a run's config gives no output.name, the file's stem becomes
/// it.
template <Configuration T>
T load_config(const std::filesystem::path& path, const std::vector<std::string>& overrides = {}) {
  T config = config_from_json<T>(load_config_object(path, overrides));
  if constexpr (requires { config.output.name; })
    if (config.output.name.empty()) config.output.name = default_run_name(path);
  return config;
}

/// Every key with its value. config_from_json of it gives the same config again.
template <Configuration T>
boost::json::object to_json(const T& config) {
  T copy = config;
  return describe(copy).write();
}

/// What --help-config prints: every key with type, default, what is allowed, and meaning.
template <Configuration T>
std::string config_help() {
  T defaults;
  return "Keys of a configuration file, by section. --set section.key=value overrides one.\n" +
         describe(defaults).help();
}

}  // namespace switchyard::train
