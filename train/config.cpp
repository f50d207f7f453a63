#include "train/config.h"

#include <algorithm>
#include <boost/json/parse.hpp>
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

void describe_model(Schema& schema, moe::LanguageModelConfig& model) {
  schema.section("model", "the language model");
  schema.choice("kind", model.kind, "what is modelled: a decoder predicts each token from those before it");
  schema.integer("vocabulary_size", model.vocabulary_size, 0, 1 << 24,
                 "distinct tokens; 0: as many as the tokenizer has");
  schema.integer("width", model.width, 1, 1 << 16, "channels of the residual stream (d)");
  schema.integer("layers", model.layers, 1, 1024, "attention + feedforward blocks");
  schema.integer("context", model.context, 1, 1 << 20, "tokens per training window");
  schema.integer("memory", model.memory, 0, 1 << 20,
                 "positions of the previous segment attended to (position xl and data.mode contiguous only)");
  schema.share("dropout", model.dropout, "share of activations dropped after embedding, attention and feedforward");
  schema.choice("norm", model.norm, "normalisation before each block part");
  schema.number("norm_epsilon", model.norm_epsilon, 0, 1, "added to the variance inside norms");
  schema.choice("position", model.position, "how attention learns of positions");
  schema.number("rope_fraction", model.rope_fraction, 0, 1, "share of each head's channels that rope rotates");
  schema.number("rope_base", model.rope_base, 1, 1e12, "longest rope wavelength / 2 pi");
  schema.boolean("tie_embeddings", model.tie_embeddings, "use the embedding matrix as output projection");
  schema.boolean("head_bias", model.head_bias, "bias in the output projection");
  schema.number("init_scale", model.init_scale, 0, 1000,
                "initial deviation of a weight times the root of its inputs; 0: sqrt(2 / layers)");
  schema.number("embedding_init_std", model.embedding_init_std, 0, 1000, "initial deviation of the embeddings");
}

void describe_attention(Schema& schema, moe::AttentionConfig& attention) {
  schema.section("model.attention", "attention layers; the keys from experts on are for kind switchhead");
  schema.choice("kind", attention.kind, "multi-head attention, plain or with experts for some projections");
  schema.integer("heads", attention.heads, 1, 1024, "attention heads");
  schema.integer("head_width", attention.head_width, 0, 1 << 14, "channels per head; 0: model.width / heads");
  schema.share("dropout", attention.dropout, "share of attention weights dropped");
  schema.integer("experts", attention.experts, 1, 4096,
                 "experts per head and projection; 1: plain projections with an output gate");
  schema.integer("k", attention.k, 1, 4096, "experts that a token uses per head and projection");
  schema.share("expert_dropout", attention.expert_dropout, "share of experts hidden from the router in training");
  schema.choice_list("experts_on", attention.experts_on, "the projections that consist of experts");
  schema.boolean("shared_selection", attention.shared_selection, "one router per head for all of experts_on");
  schema.choice("selection", attention.selection, "weights of the chosen experts: sigmoid or softmax");
  schema.number("entropy_regularizer", attention.entropy_regularizer, 0, 1000,
                "weight of the entropy regulariser on the attention routers");
}

void describe_feedforward(Schema& schema, moe::FeedForwardConfig& feedforward) {
  schema.section("model.feedforward", "feedforward layers; the keys from experts on are for kind sigma_moe");
  schema.choice("kind", feedforward.kind, "one two-matrix layer, a gated one, or experts");
  schema.choice("activation", feedforward.activation,
                {ops::Activation::relu, ops::Activation::gelu, ops::Activation::gelu_tanh, ops::Activation::silu},
                "the nonlinearity (of the gate, for kind glu)");
  schema.boolean("bias", feedforward.bias, "biases in the layer");
  schema.integer("width", feedforward.width, 0, 1 << 20, "hidden neurons of kinds dense and glu; 0: width_multiplier");
  schema.number("width_multiplier", feedforward.width_multiplier, 0, 1024,
                "hidden neurons / model.width, rounded down; 0 beside width 0: 4");
  schema.integer("experts", feedforward.experts, 1, 1 << 16, "experts");
  schema.integer("expert_width", feedforward.expert_width, 1, 1 << 20, "hidden neurons per expert");
  schema.integer("k", feedforward.k, 1, 1 << 16, "experts that a token uses");
  schema.choice("selection", feedforward.selection, "weights of the chosen experts");
  schema.integer("sinkhorn_rounds", feedforward.sinkhorn_rounds, 1, 100, "balancing rounds of selection sinkmoid");
  schema.share("expert_dropout", feedforward.expert_dropout, "share of experts hidden from the router in training");
  schema.number("entropy_regularizer", feedforward.entropy_regularizer, 0, 1000,
                "weight of the entropy regulariser on the router");
}

void describe_data(Schema& schema, DataConfig& data) {
  schema.section("data", "the texts");
  schema.text_list("files", data.files, "text files or folders to train on; none: the text built into the program");
  schema.text_list("validation_files", data.validation_files,
                   "texts to validate on; none: the end of the training text");
  schema.share("validation_fraction", data.validation_fraction,
               "share of the text kept for validation where validation_files is empty");
  schema.integer("validation_windows", data.validation_windows, 1, 1 << 24,
                 "windows, spread evenly over the validation text, that a validation reads");
  schema.boolean("respect_documents", data.respect_documents, "never let a window reach into a second document");
  schema.choice("mode", data.mode, "windows from anywhere, or every batch row reading on where it stopped");

  schema.section("data.tokenizer", "from text to tokens");
  schema.choice("kind", data.tokenizer.kind,
                "bytes: 256 tokens, nothing to train; sentencepiece: a unigram vocabulary");
  schema.integer("vocabulary_size", data.tokenizer.vocabulary_size, 16, 1 << 24,
                 "pieces that sentencepiece trains where no model is given");
  schema.text("model", data.tokenizer.model, "a trained sentencepiece .model file; empty: train one on the files");
}

void describe_training(Schema& schema, TrainingConfig& training) {
  schema.section("training", "the loop");
  schema.integer("steps", training.steps, 1, kManySteps, "optimiser steps");
  schema.integer("batch", training.batch, 1, 1 << 20, "windows per step");
  schema.integer("gradient_accumulation", training.gradient_accumulation, 1, 1 << 20,
                 "parts that a step's batch is worked off in, to save memory");
  schema.choice("dtype", training.dtype, "type of parameters and activations; bf16 keeps f32 master weights");
  schema.text("device", training.device, "cpu, cuda or cuda:<index>");
  schema.integer("seed", training.seed, 0, INT64_MAX, "of initial weights, data order and dropout");
  schema.boolean("recompute", training.recompute, "forget each layer's activations and compute them again in backward");
  schema.number("clip", training.clip, 0, 1e9, "longest gradient (L2 norm over all parameters); 0: any");
  schema.integer("log_every", training.log_every, 1, kManySteps, "steps between progress and metrics lines");
  schema.integer("validate_every", training.validate_every, 0, kManySteps,
                 "steps between validations; 0: at the end only");
  schema.integer("checkpoint_every", training.checkpoint_every, 0, kManySteps,
                 "steps between checkpoints; 0: at the end only");
  schema.integer("keep_checkpoints", training.keep_checkpoints, 1, 10000, "newest checkpoints kept");
}

void describe_optimizer(Schema& schema, OptimizerConfig& optimizer) {
  schema.section("optimizer", "the optimiser");
  schema.choice("kind", optimizer.kind, "AdamW with decoupled decay, or plain gradient descent");
  schema.number("learning_rate", optimizer.learning_rate, 0, 1000, "at the top of the schedule");
  schema.share("beta1", optimizer.beta1, "adamw: memory of the gradient's mean");
  schema.share("beta2", optimizer.beta2, "adamw: memory of the gradient's square");
  schema.number("epsilon", optimizer.epsilon, 0, 1, "adamw: added to the root of the second moment");
  schema.share("momentum", optimizer.momentum, "sgd: memory of past steps");
  schema.number("weight_decay", optimizer.weight_decay, 0, 1000, "decay per unit of learning rate");
  schema.boolean("decay_all", optimizer.decay_all, "decay norms and biases too");

  schema.section("optimizer.schedule", "the learning rate over the steps");
  schema.choice("kind", optimizer.schedule.kind,
                "shape after the warm-up; switchhead_warmup_then_cosine ends warmup_steps late, as in that paper");
  schema.integer("warmup_steps", optimizer.schedule.warmup_steps, 0, kManySteps, "steps of linear rise");
  schema.number("final_fraction", optimizer.schedule.final_fraction, 0, 1, "last rate / top rate");
}

void describe_output(Schema& schema, OutputConfig& output) {
  schema.section("output", "what a run leaves behind");
  schema.text("folder", output.folder, "folder that holds the run folders");
  schema.text("name", output.name, "first part of the run folder's name; empty: the config file's name");
  schema.integer("sample_length", output.sample_length, 0, 1 << 20, "tokens of the text written at the end");
  schema.text("sample_prompt", output.sample_prompt, "what that text begins with; empty: a new document");
  schema.number("sample_temperature", output.sample_temperature, 0, 100, "0: always the likeliest token");
}

void validate_data(const Config& config) {
  const DataConfig& data = config.data;
  const TokenizerConfig& tokenizer = data.tokenizer;
  check(tokenizer.kind == TokenizerKind::sentencepiece || tokenizer.model.empty(),
        "config: data.tokenizer.model: ", abbreviate(json::value(tokenizer.model)),
        " is given, expected none with tokenizer \"bytes\"");
  check(config.model.vocabulary_size == 0 || tokenizer.kind != TokenizerKind::bytes ||
            config.model.vocabulary_size >= 256,
        "config: model.vocabulary_size: ", config.model.vocabulary_size,
        " is too small, expected 0 or at least 256 with tokenizer \"bytes\"");
  check(config.model.vocabulary_size == 0 || tokenizer.kind != TokenizerKind::sentencepiece ||
            !tokenizer.model.empty() || config.model.vocabulary_size >= tokenizer.vocabulary_size,
        "config: model.vocabulary_size: ", config.model.vocabulary_size,
        " is too small, expected 0 or at least the tokenizer's ", tokenizer.vocabulary_size);
  check(!data.validation_files.empty() || data.validation_fraction > 0.0,
        "config: data.validation_fraction: 0 leaves nothing to validate on, expected more than 0 or validation_files");
  check(config.model.memory == 0 || data.mode == DataMode::contiguous,
        "config: data.mode: \"random\" is not possible "
        "with model.memory ",
        config.model.memory, ", expected \"contiguous\"");
  check(data.mode == DataMode::random || !data.respect_documents,
        "config: data.respect_documents: true is not possible with data.mode \"contiguous\", expected false");
  const auto check_files = [](const char* key, const std::vector<std::string>& files) {
    for (std::size_t i = 0; i < files.size(); ++i)
      check(!files[i].empty(), "config: data.", key, '[', i, "]: \"\" is empty, expected a file or folder");
  };
  check_files("files", data.files);
  check_files("validation_files", data.validation_files);
}

void validate_training(const Config& config) {
  const TrainingConfig& training = config.training;
  check(training.batch % training.gradient_accumulation == 0,
        "config: training.gradient_accumulation: ", training.gradient_accumulation, " does not divide training.batch ",
        training.batch, ", expected a divisor of it");
  try {
    Device::parse(training.device);
  } catch (const Error&) {
    fail("config: training.device: ", abbreviate(json::value(training.device)),
         " is unknown, expected \"cpu\", \"cuda\" or \"cuda:<index>\"");
  }
  const OptimizerConfig& optimizer = config.optimizer;
  check(optimizer.learning_rate > 0.0, "config: optimizer.learning_rate: 0 trains nothing, expected more than 0");
  check(optimizer.kind == OptimizerKind::sgd || optimizer.momentum == 0.0,
        "config: optimizer.momentum: ", optimizer.momentum,
        " is not possible with optimizer \"adamw\", expected 0 (adamw has beta1)");
  check(optimizer.schedule.warmup_steps <= training.steps,
        "config: optimizer.schedule.warmup_steps: ", optimizer.schedule.warmup_steps, " is more than training.steps ",
        training.steps, ", expected at most that");
}

void validate_output(const OutputConfig& output) {
  check(!output.folder.empty(), "config: output.folder: \"\" is empty, expected a folder");
  const bool plain = std::all_of(output.name.begin(), output.name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  });
  check(plain && output.name.size() <= 100 && (output.name.empty() || output.name[0] != '.'),
        "config: output.name: ", abbreviate(json::value(output.name)),
        " is no folder name, expected at most 100 letters, digits, '-', '_' and '.', not starting with '.'");
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

Schema describe(Config& config) {
  Schema schema;
  describe_model(schema, config.model);
  describe_attention(schema, config.model.attention);
  describe_feedforward(schema, config.model.feedforward);
  describe_data(schema, config.data);
  describe_training(schema, config.training);
  describe_optimizer(schema, config.optimizer);
  describe_output(schema, config.output);
  return schema;
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

Config config_from_json(const json::object& values) {
  Config config;
  describe(config).read(values);
  validate(config);
  return config;
}

Config parse_config(std::string_view text, const std::string& source, const std::vector<std::string>& overrides) {
  json::object values = parse_object(text, source);
  apply_overrides(values, overrides);
  return config_from_json(values);
}

Config load_config(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  Config config = parse_config(read_config_text(path), path.string(), overrides);
  if (config.output.name.empty()) {
    for (const char c : path.stem().string().substr(0, 100)) {
      const bool plain = std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
      config.output.name += plain ? c : '-';
    }
    if (config.output.name.empty() || config.output.name[0] == '.') config.output.name = "run";
  }
  return config;
}

json::object to_json(const Config& config) {
  Config copy = config;
  return describe(copy).write();
}

std::string config_help() {
  Config defaults;
  return "Keys of a configuration file, by section. --set section.key=value overrides one.\n" +
         describe(defaults).help();
}

void validate(const Config& config) {
  moe::validate(config.model);
  validate_data(config);
  validate_training(config);
  validate_output(config.output);
}

}  // namespace switchyard::train
