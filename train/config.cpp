#include "train/config.h"

#include "core/error.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

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
  schema.choice("position", model.position,
                "how the model learns of positions; learned: a trained vector for each place in the context");
  schema.number("rope_fraction", model.rope_fraction, 0, 1, "share of each head's channels that rope rotates");
  schema.number("rope_base", model.rope_base, 1, 1e12, "longest rope wavelength / 2 pi");
  schema.number("embedding_scale", model.embedding_scale, 0, 1e6, "multiplies the tokens' embeddings");
  schema.boolean("tie_embeddings", model.tie_embeddings, "use the embedding matrix as output projection");
  schema.boolean("head_bias", model.head_bias, "bias in the output projection");
  schema.choice("init", model.init,
                "distribution that dense layers' weights start from; switchhead and sigma_moe start normal");
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
  schema.boolean("bias", attention.bias, "kind dense: biases in the projections");
  schema.integer("key_value_heads", attention.key_value_heads, 0, 1024,
                 "kind dense: heads of keys and values, each for equally many query heads; 0: as many as heads");
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
  describe_tokenizer(schema, data.tokenizer);
}

void describe_language_model_training(Schema& schema, LanguageModelTrainingConfig& training) {
  describe_training(schema, training, "windows");
  schema.integer("gradient_accumulation", training.gradient_accumulation, 1, 1 << 20,
                 "parts that a step's batch is worked off in, to save memory");
  schema.boolean("recompute", training.recompute, "forget each layer's activations and compute them again in backward");
}

void describe_samples(Schema& schema, LanguageModelOutputConfig& output) {
  describe_output(schema, output);
  schema.integer("sample_length", output.sample_length, 0, 1 << 20, "tokens of the text written at the end");
  schema.text("sample_prompt", output.sample_prompt, "what that text begins with; empty: a new document");
  schema.number("sample_temperature", output.sample_temperature, 0, 100, "0: always the likeliest token");
}

void validate_data(const Config& config) {
  const DataConfig& data = config.data;
  const TokenizerConfig& tokenizer = data.tokenizer;
  validate_tokenizer(tokenizer);
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

void validate_parts(const LanguageModelTrainingConfig& training) {
  check(training.batch % training.gradient_accumulation == 0,
        "config: training.gradient_accumulation: ", training.gradient_accumulation, " does not divide training.batch ",
        training.batch, ", expected a divisor of it");
}

}  // namespace

Schema describe(Config& config) {
  Schema schema;
  describe_model(schema, config.model);
  describe_attention(schema, config.model.attention);
  describe_feedforward(schema, config.model.feedforward);
  describe_data(schema, config.data);
  describe_language_model_training(schema, config.training);
  describe_optimizer(schema, "optimizer", config.optimizer);
  describe_samples(schema, config.output);
  return schema;
}

void validate(const Config& config) {
  moe::validate(config.model);
  validate_data(config);
  validate_training(config.training, config.optimizer);
  validate_parts(config.training);
  validate_output(config.output);
}

}  // namespace switchyard::train
