#include "train/config_sections.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "core/device.h"
#include "core/error.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

constexpr std::size_t kLongestFile = 1 << 20;
constexpr std::int64_t kManySteps = 1'000'000'000;
constexpr std::size_t kLongestName = 100;

bool fits_folder_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

/// At most kLongestFile bytes: reading is bounded whatever the path turns out to be.
std::string read_config_text(const std::filesystem::path& path) {
  std::error_code code;
  check(!std::filesystem::is_directory(path, code), "config: ", path.string(), ": is a folder, expected a JSON file");
  const std::unique_ptr<std::FILE, CloseFile> file(std::fopen(path.c_str(), "rb"));
  check(file != nullptr, "config: ", path.string(), ": cannot be opened: ", std::strerror(errno));
  std::string text(kLongestFile + 1, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file.get()));
  check(!std::ferror(file.get()), "config: ", path.string(), ": cannot be read: ", std::strerror(errno));
  check(text.size() <= kLongestFile, "config: ", path.string(), ": is too large, expected at most ", kLongestFile,
        " bytes");
  return text;
}

json::object parse_object(std::string_view text, const std::string& source) {
  check(text.find_first_not_of(" \t\r\n") != std::string_view::npos, "config: ", source,
        ": is empty, expected a JSON object: { ... }");
  json::value value = parse_json(text, "config: " + source);
  check(value.is_object(), "config: ", source, ": holds ", abbreviate(value), ", expected a JSON object: { ... }");
  return std::move(value.get_object());
}

}  // namespace

DType dtype_of(TrainingType type) { return type == TrainingType::bf16 ? DType::bf16 : DType::f32; }

void describe_tokenizer(Schema& schema, TokenizerConfig& tokenizer) {
  schema.section("data.tokenizer", "from text to tokens");
  schema.choice("kind", tokenizer.kind,
                "bytes: 256 tokens, nothing to train; sentencepiece: a unigram vocabulary; transformers: from a "
                "tokenizer.json of that library; none: of imported models");
  schema.integer("vocabulary_size", tokenizer.vocabulary_size, 16, 1 << 24,
                 "pieces that sentencepiece trains where no model is given");
  schema.text("model", tokenizer.model,
              "a trained sentencepiece .model file (empty: train one on the files), or the tokenizer.json");
}

void describe_training(Schema& schema, TrainingConfig& training, const std::string& examples) {
  schema.section("training", "the loop");
  schema.integer("steps", training.steps, 1, kManySteps, "optimiser steps");
  schema.integer("batch", training.batch, 1, 1 << 20, examples + " per step");
  schema.choice("dtype", training.dtype, "type of parameters and activations; bf16 keeps f32 master weights");
  schema.text("device", training.device, "cpu, cuda or cuda:<index>");
  schema.integer("seed", training.seed, 0, INT64_MAX, "of initial weights, data order and dropout");
  schema.number("clip", training.clip, 0, 1e9, "longest gradient (L2 norm over all parameters); 0: any");
  schema.integer("log_every", training.log_every, 1, kManySteps, "steps between progress and metrics lines");
  schema.integer("validate_every", training.validate_every, 0, kManySteps,
                 "steps between validations; 0: at the end only");
  schema.integer("checkpoint_every", training.checkpoint_every, 0, kManySteps,
                 "steps between checkpoints; 0: at the end only");
  schema.integer("keep_checkpoints", training.keep_checkpoints, 1, 10000, "newest checkpoints kept");
}

void describe_optimizer(Schema& schema, const std::string& path, OptimizerConfig& optimizer) {
  schema.section(path, "the optimiser");
  schema.choice("kind", optimizer.kind, "AdamW with decoupled decay, or plain gradient descent");
  schema.number("learning_rate", optimizer.learning_rate, 0, 1000, "at the top of the schedule");
  schema.share("beta1", optimizer.beta1, "adamw: memory of the gradient's mean");
  schema.share("beta2", optimizer.beta2, "adamw: memory of the gradient's square");
  schema.number("epsilon", optimizer.epsilon, 0, 1, "adamw: added to the root of the second moment");
  schema.share("momentum", optimizer.momentum, "sgd: memory of past steps");
  schema.number("weight_decay", optimizer.weight_decay, 0, 1000, "decay per unit of learning rate");
  schema.boolean("decay_all", optimizer.decay_all, "decay norms and biases too");

  schema.section(path + ".schedule", "the learning rate over the steps");
  schema.choice("kind", optimizer.schedule.kind,
                "shape after the warm-up; switchhead_warmup_then_cosine ends warmup_steps late, as in that paper");
  schema.integer("warmup_steps", optimizer.schedule.warmup_steps, 0, kManySteps, "steps of linear rise");
  schema.number("final_fraction", optimizer.schedule.final_fraction, 0, 1, "last rate / top rate");
}

void describe_output(Schema& schema, OutputConfig& output) {
  schema.section("output", "what a run leaves behind");
  schema.text("folder", output.folder, "folder that holds the run folders");
  schema.text("name", output.name, "first part of the run folder's name; empty: the config file's name");
}

void validate_tokenizer(const TokenizerConfig& tokenizer) {
  check(tokenizer.kind != TokenizerKind::transformers || !tokenizer.model.empty(),
        "config: data.tokenizer.model: is empty, expected a tokenizer.json");
  const bool has_model =
      tokenizer.kind == TokenizerKind::sentencepiece || tokenizer.kind == TokenizerKind::transformers;
  check(has_model || tokenizer.model.empty(),
        "config: data.tokenizer.model: ", abbreviate(json::value(tokenizer.model)),
        " is given, expected none with tokenizer \"",
        names_of(tokenizer.kind)[static_cast<std::size_t>(tokenizer.kind)], '"');
}

void validate_training(const TrainingConfig& training, const OptimizerConfig& optimizer) {
  try {
    Device::parse(training.device);
  } catch (const Error&) {
    fail("config: training.device: ", abbreviate(json::value(training.device)),
         " is unknown, expected \"cpu\", \"cuda\" or \"cuda:<index>\"");
  }
  validate_optimizer("optimizer", optimizer, "training.steps", training.steps);
}

void validate_optimizer(const std::string& path, const OptimizerConfig& optimizer, const std::string& steps_key,
                        std::int64_t steps) {
  const std::string key = "config: " + path + '.';
  check(optimizer.learning_rate > 0.0, key, "learning_rate: 0 trains nothing, expected more than 0");
  check(optimizer.epsilon > 0.0, key, "epsilon: 0 makes 0 / 0 of a gradient that is 0, expected more than 0");
  check(optimizer.kind == OptimizerKind::sgd || optimizer.momentum == 0.0, key, "momentum: ", optimizer.momentum,
        " is not possible with optimizer \"adamw\", expected 0 (adamw has beta1)");
  check(optimizer.schedule.warmup_steps <= steps, key, "schedule.warmup_steps: ", optimizer.schedule.warmup_steps,
        " is more than ", steps_key, ' ', steps, ", expected at most that");
}

void validate_output(const OutputConfig& output) {
  check(!output.folder.empty(), "config: output.folder: \"\" is empty, expected a folder");
  const bool plain = std::all_of(output.name.begin(), output.name.end(), fits_folder_name);
  check(plain && output.name.size() <= kLongestName && (output.name.empty() || output.name[0] != '.'),
        "config: output.name: ", abbreviate(json::value(output.name)),
        " is no folder name, expected at most 100 letters, digits, '-', '_' and '.', not starting with '.'");
}

void apply_overrides(json::object& values, const std::vector<std::string>& overrides) {
  for (const std::string& text : overrides) {
    const auto equals = text.find('=');
    check(equals != std::string::npos && equals > 0, "config: --set ", abbreviate(json::value(text)),
          ": expected <key>=<value>, such as model.layers=4");
    json::object* place = &values;
    std::string_view path = std::string_view(text).substr(0, equals);
    std::string section;
    for (auto dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.')) {
      section += (section.empty() ? "" : ".") + std::string(path.substr(0, dot));
      json::value& child = (*place)[path.substr(0, dot)];
      if (child.is_null()) child.emplace_object();
      check(child.is_object(), "config: --set ", text.substr(0, equals), ": ", section, " is ", abbreviate(child),
            " and no section");
      place = &child.get_object();
      path = path.substr(dot + 1);
    }
    json::value value;
    try {
      value = parse_json(std::string_view(text).substr(equals + 1), "--set");
    } catch (const Error&) {
      value = json::string(text.substr(equals + 1));  // --set model.norm=rmsnorm, without quotes for the shell
    }
    (*place)[path] = std::move(value);
  }
}

json::object parse_config_object(std::string_view text, const std::string& source,
                                 const std::vector<std::string>& overrides) {
  json::object values = parse_object(text, source);
  apply_overrides(values, overrides);
  return values;
}

json::object load_config_object(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  return parse_config_object(read_config_text(path), path.string(), overrides);
}

std::string default_run_name(const std::filesystem::path& path) {
  std::string name = path.stem().string().substr(0, kLongestName);
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !fits_folder_name(c); }, '-');
  return name.empty() || name[0] == '.' ? "run" : name;
}

}  // namespace switchyard::train
