#include "train/import/models.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "moe/language_model.h"
#include "train/import/weights.h"

namespace switchyard::train {
namespace {

const WeightNames kGpt2 = {
    .prefix = "transformer.",
    .rules = {{.ours = "embedding", .theirs = "transformer.wte"},
              {.ours = "position", .theirs = "transformer.wpe", .leading = true},
              {.ours = "layers.#.attention_norm", .theirs = "transformer.h.#.ln_1"},
              {.ours = "layers.#.attention.query",
               .theirs = "transformer.h.#.attn.c_attn",
               .transposed = true,
               .part = 0,
               .parts = 3},
              {.ours = "layers.#.attention.key",
               .theirs = "transformer.h.#.attn.c_attn",
               .transposed = true,
               .part = 1,
               .parts = 3},
              {.ours = "layers.#.attention.value",
               .theirs = "transformer.h.#.attn.c_attn",
               .transposed = true,
               .part = 2,
               .parts = 3},
              {.ours = "layers.#.attention.output", .theirs = "transformer.h.#.attn.c_proj", .transposed = true},
              {.ours = "layers.#.feed_forward_norm", .theirs = "transformer.h.#.ln_2"},
              {.ours = "layers.#.feed_forward.up", .theirs = "transformer.h.#.mlp.c_fc", .transposed = true},
              {.ours = "layers.#.feed_forward.down", .theirs = "transformer.h.#.mlp.c_proj", .transposed = true},
              {.ours = "final_norm", .theirs = "transformer.ln_f"},
              {.ours = "output", .theirs = "lm_head"}},
    .unused = {".attn.bias", ".attn.masked_bias"}};  // causal masks

const WeightNames kGemma = {
    .prefix = "model.",
    .rules = {{.ours = "embedding", .theirs = "model.embed_tokens"},
              {.ours = "layers.#.attention_norm", .theirs = "model.layers.#.input_layernorm", .added = 1},
              {.ours = "layers.#.attention.query", .theirs = "model.layers.#.self_attn.q_proj"},
              {.ours = "layers.#.attention.key", .theirs = "model.layers.#.self_attn.k_proj"},
              {.ours = "layers.#.attention.value", .theirs = "model.layers.#.self_attn.v_proj"},
              {.ours = "layers.#.attention.output", .theirs = "model.layers.#.self_attn.o_proj"},
              {.ours = "layers.#.feed_forward_norm", .theirs = "model.layers.#.post_attention_layernorm", .added = 1},
              {.ours = "layers.#.feed_forward.gate", .theirs = "model.layers.#.mlp.gate_proj"},
              {.ours = "layers.#.feed_forward.up", .theirs = "model.layers.#.mlp.up_proj"},
              {.ours = "layers.#.feed_forward.down", .theirs = "model.layers.#.mlp.down_proj"},
              {.ours = "final_norm", .theirs = "model.norm", .added = 1},
              {.ours = "output", .theirs = "lm_head"}},
    .unused = {".rotary_emb.inv_freq"}};

const WeightNames kBert = {
    .prefix = "bert.",
    .rules = {{.ours = "embedding", .theirs = "bert.embeddings.word_embeddings"},
              {.ours = "position", .theirs = "bert.embeddings.position_embeddings", .leading = true},
              {.ours = "segment", .theirs = "bert.embeddings.token_type_embeddings"},
              {.ours = "embedding_norm", .theirs = "bert.embeddings.LayerNorm"},
              {.ours = "layers.#.attention.query", .theirs = "bert.encoder.layer.#.attention.self.query"},
              {.ours = "layers.#.attention.key", .theirs = "bert.encoder.layer.#.attention.self.key"},
              {.ours = "layers.#.attention.value", .theirs = "bert.encoder.layer.#.attention.self.value"},
              {.ours = "layers.#.attention.output", .theirs = "bert.encoder.layer.#.attention.output.dense"},
              {.ours = "layers.#.attention_norm", .theirs = "bert.encoder.layer.#.attention.output.LayerNorm"},
              {.ours = "layers.#.feed_forward.up", .theirs = "bert.encoder.layer.#.intermediate.dense"},
              {.ours = "layers.#.feed_forward.down", .theirs = "bert.encoder.layer.#.output.dense"},
              {.ours = "layers.#.feed_forward_norm", .theirs = "bert.encoder.layer.#.output.LayerNorm"},
              {.ours = "pooler", .theirs = "bert.pooler.dense"},
              {.ours = "classifier", .theirs = "classifier"}},
    .unused = {".position_ids"}};

const WeightNames kVit = {
    .prefix = "vit.",
    .rules = {{.ours = "patch_embedding", .theirs = "vit.embeddings.patch_embeddings.projection", .reshaped = true},
              {.ours = "class_token", .theirs = "vit.embeddings.cls_token", .reshaped = true},
              {.ours = "position.weight", .theirs = "vit.embeddings.position_embeddings", .reshaped = true},
              {.ours = "layers.#.attention_norm", .theirs = "vit.encoder.layer.#.layernorm_before"},
              {.ours = "layers.#.attention.query", .theirs = "vit.encoder.layer.#.attention.attention.query"},
              {.ours = "layers.#.attention.key", .theirs = "vit.encoder.layer.#.attention.attention.key"},
              {.ours = "layers.#.attention.value", .theirs = "vit.encoder.layer.#.attention.attention.value"},
              {.ours = "layers.#.attention.output", .theirs = "vit.encoder.layer.#.attention.output.dense"},
              {.ours = "layers.#.feed_forward_norm", .theirs = "vit.encoder.layer.#.layernorm_after"},
              {.ours = "layers.#.feed_forward.up", .theirs = "vit.encoder.layer.#.intermediate.dense"},
              {.ours = "layers.#.feed_forward.down", .theirs = "vit.encoder.layer.#.output.dense"},
              {.ours = "final_norm", .theirs = "vit.layernorm"},
              {.ours = "classifier", .theirs = "classifier"}},
    .unused = {}};

/// The activation that transformers calls `name`.
ops::Activation activation_of(const HubSettings& theirs, const std::string& name) {
  constexpr std::array<std::pair<std::string_view, ops::Activation>, 6> kNames = {
      {{"gelu", ops::Activation::gelu},
       {"gelu_new", ops::Activation::gelu_tanh},
       {"gelu_pytorch_tanh", ops::Activation::gelu_tanh},
       {"relu", ops::Activation::relu},
       {"silu", ops::Activation::silu},
       {"swish", ops::Activation::silu}}};
  for (const auto& [known, activation] : kNames)
    if (known == name) return activation;
  fail(theirs.where(), "activation \"", name,
       "\" is unknown, expected gelu, gelu_new, gelu_pytorch_tanh, relu or silu");
}

moe::LanguageModelConfig gpt2_config(const HubSettings& theirs) {
  theirs.expect("scale_attn_weights", true);
  theirs.expect("scale_attn_by_inverse_layer_idx", false);
  theirs.expect("add_cross_attention", false);
  moe::LanguageModelConfig config;
  config.vocabulary_size = theirs.integer("vocab_size");
  config.width = theirs.integer("n_embd");
  config.layers = theirs.integer("n_layer");
  config.context = theirs.integer("n_positions");
  config.position = moe::PositionKind::learned;
  config.norm_epsilon = theirs.number("layer_norm_epsilon", 1e-5);
  config.tie_embeddings = theirs.boolean("tie_word_embeddings", true);
  config.dropout = theirs.number("resid_pdrop", 0.1);
  config.attention.kind = moe::AttentionKind::dense;
  config.attention.heads = theirs.integer("n_head");
  config.attention.dropout = theirs.number("attn_pdrop", 0.1);
  config.attention.bias = true;
  config.feedforward.kind = moe::FeedForwardKind::dense;
  config.feedforward.width = theirs.integer("n_inner", 4 * config.width);
  config.feedforward.activation = activation_of(theirs, theirs.text("activation_function", "gelu_new"));
  config.feedforward.bias = true;
  return config;
}

/// Gemma's files of the first hour name the exact gelu, and the library used the tanh form that the model was trained
/// with all the same.
ops::Activation gemma_activation(const HubSettings& theirs) {
  const std::string name = theirs.text("hidden_activation", theirs.text("hidden_act", "gelu_pytorch_tanh"));
  return name == "gelu" ? ops::Activation::gelu_tanh : activation_of(theirs, name);
}

moe::LanguageModelConfig gemma_config(const HubSettings& theirs) {
  theirs.expect("rope_scaling", nullptr);
  theirs.expect("rope_parameters.rope_type", "default");
  theirs.expect("use_bidirectional_attention", false);
  moe::LanguageModelConfig config;
  config.vocabulary_size = theirs.integer("vocab_size");
  config.width = theirs.integer("hidden_size");
  config.layers = theirs.integer("num_hidden_layers");
  config.context = theirs.integer("max_position_embeddings");
  config.norm = moe::NormKind::rmsnorm;
  config.norm_epsilon = theirs.number("rms_norm_eps", 1e-6);
  config.position = moe::PositionKind::rope;
  config.rope_fraction = 1;
  config.rope_base = theirs.number("rope_parameters.rope_theta", theirs.number("rope_theta", 10000.0));
  config.embedding_scale = std::sqrt(static_cast<double>(config.width));
  config.tie_embeddings = theirs.boolean("tie_word_embeddings", true);
  config.attention.kind = moe::AttentionKind::dense;
  config.attention.heads = theirs.integer("num_attention_heads");
  config.attention.key_value_heads = theirs.integer("num_key_value_heads", config.attention.heads);
  config.attention.head_width = theirs.integer("head_dim", 256);
  config.attention.dropout = theirs.number("attention_dropout", 0.0);
  config.attention.bias = theirs.boolean("attention_bias", false);
  config.feedforward.kind = moe::FeedForwardKind::glu;
  config.feedforward.width = theirs.integer("intermediate_size");
  config.feedforward.activation = gemma_activation(theirs);
  return config;
}

/// What BERT's and ViT's config.json have in common.
ClassifierModelConfig encoder_config(const HubSettings& theirs) {
  ClassifierModelConfig config;
  config.width = theirs.integer("hidden_size");
  config.layers = theirs.integer("num_hidden_layers");
  config.attention.heads = theirs.integer("num_attention_heads");
  config.feedforward.width = theirs.integer("intermediate_size");
  config.feedforward.activation = activation_of(theirs, theirs.text("hidden_act", "gelu"));
  config.norm_epsilon = theirs.number("layer_norm_eps", 1e-12);
  config.dropout = theirs.number("hidden_dropout_prob");
  config.attention.dropout = theirs.number("attention_probs_dropout_prob");
  return config;
}

ClassifierModelConfig bert_config(const HubSettings& theirs) {
  theirs.expect("position_embedding_type", "absolute");
  theirs.expect("is_decoder", false);
  ClassifierModelConfig config = encoder_config(theirs);
  theirs.expect("classifier_dropout", config.dropout);
  config.kind = ClassifierKind::text_classifier;
  config.vocabulary_size = theirs.integer("vocab_size");
  config.context = theirs.integer("max_position_embeddings");
  config.segments = theirs.integer("type_vocab_size", 2);
  config.norm_placement = nn::NormPlacement::post;
  config.pooling = nn::Pooling::first_token;
  config.pooler = true;
  return config;
}

ClassifierModelConfig vit_config(const HubSettings& theirs) {
  theirs.expect("qkv_bias", true);
  ClassifierModelConfig config = encoder_config(theirs);
  config.kind = ClassifierKind::image_classifier;
  config.image_size = theirs.integer("image_size");
  config.channels = theirs.integer("num_channels");
  config.patch_size = theirs.integer("patch_size");
  return config;
}

double real(std::int64_t value) { return static_cast<double>(value); }

/// Throws Error where matrices of these sizes hold more values than the files, so that nothing huge is built for them.
/// `embeddings`: rows of `width` values.
void check_size(const HubFolder& folder, std::int64_t layers, std::int64_t width, std::int64_t hidden,
                std::int64_t all_heads, double embeddings) {
  const double values = real(width) * (real(layers) * (2 * real(hidden) + 2 * real(all_heads)) + embeddings);
  check(values <= real(folder.total_values()), "import: ", folder.path().string(),
        ": config.json describes a model of at least ", values, " weights, the files hold ", folder.total_values());
}

void check_size(const HubFolder& folder, const ClassifierModelConfig& config, double embeddings) {
  check_size(folder, config.layers, config.width, feedforward_width(config), config.width, embeddings);
}

}  // namespace

bool is_language_model(const HubFolder& folder) {
  const std::string family = folder.model_type();
  return family == "gpt2" || family == "gemma";
}

moe::LanguageModelConfig language_model_config(const HubFolder& folder) {
  check(is_language_model(folder), folder.config().where(), "model_type \"", folder.model_type(),
        "\" is no language model known here, expected \"gpt2\" or \"gemma\"");
  return folder.model_type() == "gpt2" ? gpt2_config(folder.config()) : gemma_config(folder.config());
}

ClassifierModelConfig classifier_model_config(const HubFolder& folder) {
  const std::string family = folder.model_type();
  check(family == "bert" || family == "vit", folder.config().where(), "model_type \"", family,
        "\" is no classifier known here, expected \"bert\" or \"vit\", or a language model's: \"gpt2\" or \"gemma\"");
  return family == "bert" ? bert_config(folder.config()) : vit_config(folder.config());
}

std::vector<std::string> class_names(const HubFolder& folder) {
  const Shape& shape = folder.file_of("classifier.weight").shape("classifier.weight");
  check(shape.rank() == 2 && shape[0] > 1, "import: ", folder.path().string(), ": tensor classifier.weight is ", shape,
        ", expected [classes, width] of at least two classes");
  folder.config().expect("problem_type", "single_label_classification");
  std::vector<std::string> names;
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    const std::string number = std::to_string(i);
    names.push_back(folder.config().text("id2label." + number, "LABEL_" + number));
  }
  return names;
}

std::unique_ptr<nn::LanguageModel> import_language_model(const HubFolder& folder,
                                                         const moe::LanguageModelConfig& config) {
  moe::validate(config);
  check_size(folder, config.layers, config.width, moe::feedforward_width(config),
             config.attention.heads * moe::head_width(config), real(config.vocabulary_size));
  Generator initial(1);  // overwritten; drawn from a generator of their own so that others stay where they are
  auto model = moe::build_language_model(config, initial);
  WeightNames names = folder.model_type() == "gpt2" ? kGpt2 : kGemma;
  if (config.tie_embeddings) names.unused.emplace_back("lm_head.weight");
  import_weights(folder, names, *model);
  return model;
}

std::unique_ptr<nn::TextClassifier> import_text_classifier(const HubFolder& folder,
                                                           const ClassifierModelConfig& config) {
  validate(config);
  check_size(folder, config, real(config.vocabulary_size) + real(config.context));
  Generator initial(1);
  auto model = build_text_classifier(config, config.vocabulary_size, std::ssize(class_names(folder)), initial);
  import_weights(folder, kBert, *model);
  return model;
}

std::unique_ptr<nn::VisionTransformer> import_image_classifier(const HubFolder& folder,
                                                               const ClassifierModelConfig& config) {
  validate(config);
  const double patch = real(config.patch_size), side = real(config.image_size) / patch;
  check_size(folder, config, side * side + real(config.channels) * patch * patch);
  Generator initial(1);
  auto model = build_image_classifier(config, config.image_size, std::ssize(class_names(folder)), initial);
  import_weights(folder, kVit, *model);
  return model;
}

}  // namespace switchyard::train
