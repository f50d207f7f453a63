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
              {.ours = "position", .theirs = "transformer.wpe"},
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
              {.ours = "position", .theirs = "bert.embeddings.position_embeddings"},
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
ops::Activation activation_of(const HubFolder& folder, const std::string& name) {
  constexpr std::array<std::pair<std::string_view, ops::Activation>, 6> kNames = {
      {{"gelu", ops::Activation::gelu},
       {"gelu_new", ops::Activation::gelu_tanh},
       {"gelu_pytorch_tanh", ops::Activation::gelu_tanh},
       {"relu", ops::Activation::relu},
       {"silu", ops::Activation::silu},
       {"swish", ops::Activation::silu}}};
  for (const auto& [known, activation] : kNames)
    if (known == name) return activation;
  fail("import: ", folder.path().string(), "/config.json: activation \"", name,
       "\" is unknown, expected gelu, gelu_new, gelu_pytorch_tanh, relu or silu");
}

void expect_family(const HubFolder& folder, std::string_view expected) {
  const std::string family = folder.model_type();
  check(family == expected, "import: ", folder.path().string(), "/config.json: model_type \"", family,
        "\" is not what is asked for, expected \"", expected, "\"");
}

moe::LanguageModelConfig gpt2_config(const HubFolder& folder) {
  folder.expect("scale_attn_weights", true);
  folder.expect("scale_attn_by_inverse_layer_idx", false);
  folder.expect("add_cross_attention", false);
  moe::LanguageModelConfig config;
  config.vocabulary_size = folder.integer("vocab_size");
  config.width = folder.integer("n_embd");
  config.layers = folder.integer("n_layer");
  config.context = folder.integer("n_positions");
  config.position = moe::PositionKind::learned;
  config.norm_epsilon = folder.number("layer_norm_epsilon", 1e-5);
  config.tie_embeddings = folder.boolean("tie_word_embeddings", true);
  config.dropout = folder.number("resid_pdrop", 0.1);
  config.attention.kind = moe::AttentionKind::dense;
  config.attention.heads = folder.integer("n_head");
  config.attention.dropout = folder.number("attn_pdrop", 0.1);
  config.attention.bias = true;
  config.feedforward.kind = moe::FeedForwardKind::dense;
  config.feedforward.width = folder.integer("n_inner", 4 * config.width);
  config.feedforward.activation = activation_of(folder, folder.text("activation_function", "gelu_new"));
  config.feedforward.bias = true;
  return config;
}

/// Gemma's files of the first hour name the exact gelu, and the library used the tanh form that the model was trained
/// with all the same.
ops::Activation gemma_activation(const HubFolder& folder) {
  const std::string name = folder.text("hidden_activation", folder.text("hidden_act", "gelu_pytorch_tanh"));
  return name == "gelu" ? ops::Activation::gelu_tanh : activation_of(folder, name);
}

moe::LanguageModelConfig gemma_config(const HubFolder& folder) {
  folder.expect("rope_scaling", nullptr);
  folder.expect("rope_parameters.rope_type", "default");
  folder.expect("use_bidirectional_attention", false);
  moe::LanguageModelConfig config;
  config.vocabulary_size = folder.integer("vocab_size");
  config.width = folder.integer("hidden_size");
  config.layers = folder.integer("num_hidden_layers");
  config.context = folder.integer("max_position_embeddings");
  config.norm = moe::NormKind::rmsnorm;
  config.norm_epsilon = folder.number("rms_norm_eps", 1e-6);
  config.position = moe::PositionKind::rope;
  config.rope_fraction = 1;
  config.rope_base = folder.number("rope_parameters.rope_theta", folder.number("rope_theta", 10000.0));
  config.embedding_scale = std::sqrt(static_cast<double>(config.width));
  config.tie_embeddings = folder.boolean("tie_word_embeddings", true);
  config.attention.kind = moe::AttentionKind::dense;
  config.attention.heads = folder.integer("num_attention_heads");
  config.attention.key_value_heads = folder.integer("num_key_value_heads", config.attention.heads);
  config.attention.head_width = folder.integer("head_dim", 256);
  config.attention.dropout = folder.number("attention_dropout", 0.0);
  config.attention.bias = folder.boolean("attention_bias", false);
  config.feedforward.kind = moe::FeedForwardKind::glu;
  config.feedforward.width = folder.integer("intermediate_size");
  config.feedforward.activation = gemma_activation(folder);
  return config;
}

/// What BERT's and ViT's config.json have in common.
nn::EncoderBlockOptions encoder_options(const HubFolder& folder) {
  nn::EncoderBlockOptions options;
  options.width = folder.integer("hidden_size");
  options.layers = folder.integer("num_hidden_layers");
  options.heads = folder.integer("num_attention_heads");
  options.hidden = folder.integer("intermediate_size");
  options.activation = activation_of(folder, folder.text("hidden_act", "gelu"));
  options.norm_epsilon = folder.number("layer_norm_eps", 1e-12);
  options.dropout = folder.number("hidden_dropout_prob");
  options.attention_dropout = folder.number("attention_probs_dropout_prob");
  return options;
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

/// How many classes the head tells apart.
std::int64_t classes_of(const HubFolder& folder) {
  const Shape& shape = folder.file_of("classifier.weight").shape("classifier.weight");
  check(shape.rank() == 2, "import: ", folder.path().string(), ": tensor classifier.weight is ", shape,
        ", expected [classes, width]");
  return shape[0];
}

}  // namespace

ImportedLanguageModel import_language_model(const HubFolder& folder) {
  const std::string family = folder.model_type();
  check(family == "gpt2" || family == "gemma", "import: ", folder.path().string(), "/config.json: model_type \"",
        family, "\" is no language model known here, expected \"gpt2\" or \"gemma\"");
  ImportedLanguageModel imported{family == "gpt2" ? gpt2_config(folder) : gemma_config(folder), nullptr};
  const moe::LanguageModelConfig& config = imported.config;
  moe::validate(config);
  check_size(folder, config.layers, config.width, moe::feedforward_width(config),
             config.attention.heads * moe::head_width(config), real(config.vocabulary_size));
  Generator initial(1);  // overwritten; drawn from a generator of their own so that others stay where they are
  imported.model = moe::build_language_model(config, initial);
  WeightNames names = family == "gpt2" ? kGpt2 : kGemma;
  if (config.tie_embeddings) names.unused.emplace_back("lm_head.weight");
  import_weights(folder, names, *imported.model);
  return imported;
}

std::unique_ptr<nn::TextClassifier> import_text_classifier(const HubFolder& folder) {
  expect_family(folder, "bert");
  folder.expect("position_embedding_type", "absolute");
  folder.expect("is_decoder", false);
  nn::EncoderBlockOptions blocks = encoder_options(folder);
  blocks.norm_placement = nn::NormPlacement::post;
  nn::TextClassifierOptions options;
  options.vocabulary_size = folder.integer("vocab_size");
  options.positions = folder.integer("max_position_embeddings");
  options.segments = folder.integer("type_vocab_size", 2);
  options.classes = classes_of(folder);
  options.width = blocks.width;
  options.norm_epsilon = blocks.norm_epsilon;
  options.dropout = blocks.dropout;
  options.classifier_dropout = folder.number("classifier_dropout", blocks.dropout);
  check_size(folder, blocks.layers, blocks.width, blocks.hidden, blocks.width,
             real(options.vocabulary_size) + real(options.positions));
  Generator initial(1);
  auto model = std::make_unique<nn::TextClassifier>(options, nn::dense_encoder_blocks(blocks, initial), initial);
  import_weights(folder, kBert, *model);
  return model;
}

std::unique_ptr<nn::VisionTransformer> import_image_classifier(const HubFolder& folder) {
  expect_family(folder, "vit");
  folder.expect("qkv_bias", true);
  const nn::EncoderBlockOptions blocks = encoder_options(folder);
  nn::VisionTransformerOptions options;
  options.image_size = folder.integer("image_size");
  options.patch_size = folder.integer("patch_size");
  options.channels = folder.integer("num_channels");
  options.classes = classes_of(folder);
  options.width = blocks.width;
  options.norm_epsilon = blocks.norm_epsilon;
  options.dropout = blocks.dropout;
  const double patch = real(options.patch_size), side = real(options.image_size) / std::max(patch, 1.0);
  check_size(folder, blocks.layers, blocks.width, blocks.hidden, blocks.width,
             side * side + real(options.channels) * patch * patch);
  Generator initial(1);
  auto model = std::make_unique<nn::VisionTransformer>(options, nn::dense_encoder_blocks(blocks, initial), initial);
  import_weights(folder, kVit, *model);
  return model;
}

}  // namespace switchyard::train
