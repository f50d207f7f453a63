#pragma once

#include <memory>

#include "moe/language_model_config.h"
#include "nn/text_classifier.h"
#include "nn/vision_transformer.h"
#include "train/import/hub_folder.h"

/// Models of the transformers library, rebuilt here with their weights: in f32, on the default device, in training
/// mode, with their dropout. All throw Error for a model of another kind, for settings that have no counterpart here,
/// and where weights are missing, left over or of another shape.
namespace switchyard::train {

struct ImportedLanguageModel {
  moe::LanguageModelConfig config;
  std::unique_ptr<nn::LanguageModel> model;
};

/// GPT2LMHeadModel ("gpt2") or GemmaForCausalLM ("gemma", the first generation).
ImportedLanguageModel import_language_model(const HubFolder& folder);

/// BertForSequenceClassification ("bert").
std::unique_ptr<nn::TextClassifier> import_text_classifier(const HubFolder& folder);

/// ViTForImageClassification ("vit").
std::unique_ptr<nn::VisionTransformer> import_image_classifier(const HubFolder& folder);

}  // namespace switchyard::train
