#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "core/ops/elementwise.h"
#include "moe/conversion/convert.h"
#include "tests/support/close.h"
#include "tests/train/import_fixtures.h"

namespace switchyard::train {
namespace {

/// What the BERT was given; its second text is filled up with padding.
nn::TextBatch text_batch() {
  const Tensor kept = expected("bert", "attention_mask").to(DType::f32);
  return {expected("bert", "input_ids"), expected("bert", "token_type_ids"),
          ops::affine(kept, -1, 1).to(DType::boolean)};
}

/// Every feed-forward split into experts of 4 neurons, all of which run; the logits must stay.
template <class Model>
std::vector<moe::DynamicFeedForward*> split(Model& blocks_of) {
  std::vector<nn::TransformerBlock*> blocks;
  for (std::int64_t i = 0; i < blocks_of.layers(); ++i) blocks.push_back(&blocks_of.block(i));
  moe::ConversionOptions options;
  options.expert_width = 4;
  return moe::convert_feed_forwards(blocks, options);
}

TEST(Import, LanguageModelsGiveTheLibrarysLogits) {
  const NoGradGuard no_grad;
  for (const std::string family : {"gpt2", "gemma"}) {
    SCOPED_TRACE(family);
    const auto model = language_model(fixture(family));
    const Tensor tokens = expected(family, "input_ids"), logits = expected(family, "logits");
    EXPECT_CLOSE(model->logits(tokens).data(), logits, kTolerance);
    nn::DecodingState state;
    for (std::int64_t t = 0; t < tokens.size(1); ++t)
      EXPECT_CLOSE(model->decode(tokens.slice(1, t, t + 1), state), logits.slice(1, t, t + 1), kTolerance);
    EXPECT_EQ(split(*model).size(), 2u);
    EXPECT_CLOSE(model->logits(tokens).data(), logits, kTolerance);
  }
}

TEST(Import, BertGivesTheLibrarysLogitsWithPadding) {
  const NoGradGuard no_grad;
  const HubFolder folder(fixture("bert"));
  const auto model = import_text_classifier(folder, classifier_model_config(folder));
  model->eval();
  const Tensor logits = expected("bert", "logits");
  EXPECT_CLOSE(model->logits(text_batch()).output.data(), logits, kTolerance);
  EXPECT_EQ(split(model->encoder()).size(), 2u);
  EXPECT_CLOSE(model->logits(text_batch()).output.data(), logits, kTolerance);
}

TEST(Import, VitGivesTheLibrarysLogits) {
  const NoGradGuard no_grad;
  const HubFolder folder(fixture("vit"));
  const auto model = import_image_classifier(folder, classifier_model_config(folder));
  model->eval();
  const Tensor images = expected("vit", "pixel_values"), logits = expected("vit", "logits");
  EXPECT_CLOSE(model->logits(images).output.data(), logits, kTolerance);
  EXPECT_EQ(split(model->encoder()).size(), 2u);
  EXPECT_CLOSE(model->logits(images).output.data(), logits, kTolerance);
}

TEST_F(ChangedImport, ReadsFilesOfTheModelWithoutItsHead) {
  // As the Hub's own gpt2: names without the prefix, causal masks among the tensors.
  for (auto& [name, tensor] : tensors_) name = name.substr(std::string("transformer.").size());
  tensors_.emplace_back("h.0.attn.bias", Tensor::ones({1, 1, 16, 16}));
  const NoGradGuard no_grad;
  const auto model = import();
  EXPECT_CLOSE(model->logits(expected("gpt2", "input_ids")).data(), expected("gpt2", "logits"), kTolerance);
}

TEST_F(ChangedImport, ReadsBf16AndAnOutputLayerOfItsOwn) {
  replace_in_config("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
  const Tensor embedding = tensor("transformer.wte.weight");
  tensors_.emplace_back("lm_head.weight", ops::affine(embedding, 2));
  for (auto& [name, tensor] : tensors_)
    if (name.find("wpe") != std::string::npos) tensor = tensor.to(DType::bf16);
  const NoGradGuard no_grad;
  const auto model = import();
  EXPECT_CLOSE(model->logits(expected("gpt2", "input_ids")).data(), ops::affine(expected("gpt2", "logits"), 2), 1e-2);
}

TEST(Import, AShorterContextKeepsTheFirstPositions) {
  const NoGradGuard no_grad;
  const HubFolder folder(fixture("gpt2"));
  moe::LanguageModelConfig config = language_model_config(folder);
  config.context = 12;  // of 16
  const auto model = import_language_model(folder, config);
  model->eval();
  EXPECT_CLOSE(model->logits(expected("gpt2", "input_ids")).data(), expected("gpt2", "logits"), kTolerance);
  config.context = 17;
  EXPECT_ERROR(import_language_model(folder, config),
               "tensor transformer.wpe.weight f32 [16, 24] does not fit position.weight [17, 24]");
}

TEST_F(ChangedImport, NamesTensorsThatDoNotFit) {
  const std::string at = "import: " + folder_.path().string() + ": ";
  const Tensor whole = tensor("transformer.h.1.attn.c_attn.weight");
  tensor("transformer.h.1.attn.c_attn.weight") = whole.slice(1, 0, 71);
  EXPECT_ERROR(import(), at + "tensor transformer.h.1.attn.c_attn.weight f32 [24, 71] does not fit "
                              "layers.1.attention.query.weight [24, 24]");
  tensor("transformer.h.1.attn.c_attn.weight") = whole;
  tensors_.emplace_back("transformer.h.2.ln_1.weight", Tensor::ones({24}));
  EXPECT_ERROR(import(), at + "tensor transformer.h.2.ln_1.weight is no part of a gpt2 model of this shape");
  tensors_.back().first = tensors_[3].first;
  tensors_.erase(tensors_.begin() + 3);
  tensors_.pop_back();
  EXPECT_ERROR(import(), at + "has no tensor transformer.h.0.attn.c_proj.weight");
}

TEST_F(ChangedImport, NamesSettingsWithoutACounterpart) {
  const std::string at = "import: " + folder_.path().string() + "/config.json: ";
  replace_in_config("\"scale_attn_weights\": true", "\"scale_attn_weights\": false");
  EXPECT_ERROR(import(), at + "scale_attn_weights: false has no counterpart here, expected true");
  replace_in_config("\"scale_attn_weights\": false", "\"scale_attn_weights\": true");
  replace_in_config("gelu_new", "mish");
  EXPECT_ERROR(import(), at + "activation \"mish\" is unknown, expected gelu, gelu_new");
  replace_in_config("mish", "gelu_new");
  replace_in_config("\"n_head\": 3", "\"n_head\": \"3\"");
  EXPECT_ERROR(import(), at + "n_head: \"3\", expected an integer from 0 to 2^24");
  replace_in_config("\"n_head\": \"3\"", "\"n_heads\": 3");
  EXPECT_ERROR(import(), at + "has no n_head");
}

TEST_F(ChangedImport, BuildsNothingHuge) {
  const std::string at = "import: " + folder_.path().string();
  replace_in_config("\"n_layer\": 2", "\"n_layer\": 16000000");
  EXPECT_ERROR(import(), at + ": config.json describes a model of at least ");
  replace_in_config("\"n_layer\": 16000000", "\"n_layer\": 99999999999");
  EXPECT_ERROR(import(), at + "/config.json: n_layer: 99999999999, expected an integer from 0 to 2^24");
}

TEST_F(ChangedImport, NamesWhatIsNoSuchModel) {
  const std::string at = "import: " + folder_.path().string();
  EXPECT_ERROR(HubFolder(folder_ / "none"), at + "/none: is no folder, expected one with config.json");
  EXPECT_ERROR(HubFolder(folder_.path()), at + ": holds neither model.safetensors nor model.safetensors.index.json");
  testing::write_bytes(folder_ / "model.safetensors.index.json", R"({"weight_map": {"a": "../a.safetensors"}})");
  EXPECT_ERROR(
      HubFolder(folder_.path()),
      at + "/model.safetensors.index.json: a is in \"../a.safetensors\", expected the name of a file beside it");
  testing::write_bytes(folder_ / "model.safetensors.index.json", R"({"weight_map": []})");
  EXPECT_ERROR(HubFolder(folder_.path()), at + "/model.safetensors.index.json: has no object 'weight_map'");
  replace_in_config("\"gpt2\"", "\"llama\"");
  EXPECT_ERROR(import(),
               at + "/config.json: model_type \"llama\" is no language model known here, expected \"gpt2\" or");
  EXPECT_ERROR(
      classifier_model_config(HubFolder(folder_.path())),
      at +
          "/config.json: model_type \"llama\" is no classifier known here, expected \"bert\" or \"vit\", or a language "
          "model's: \"gpt2\" or \"gemma\"");
}

}  // namespace
}  // namespace switchyard::train
