#pragma once

#include <memory>
#include <string>
#include <vector>

#include "moe/language_model_config.h"
#include "train/classifier_config.h"
#include "train/import/hub_folder.h"

/// Models of the transformers library, rebuilt here with their weights: a configuration that says in our terms what
/// config.json says in theirs, and a model of it. The configuration may be changed in between in what no weight depends
/// on: dropout, or a context shorter than the trained positions, of which the first are taken then.
///
/// Families: GPT2LMHeadModel ("gpt2") and GemmaForCausalLM ("gemma", the first generation) are language models,
/// BertForSequenceClassification ("bert") and ViTForImageClassification ("vit") classifiers.
namespace switchyard::train {

/// Whether the model is of a family that language_model_config knows.
bool is_language_model(const HubFolder& folder);

// Both throw Error for a model of another kind and for settings that have no counterpart here.
moe::LanguageModelConfig language_model_config(const HubFolder& folder);
ClassifierModelConfig classifier_model_config(const HubFolder& folder);

/// The classes that a classifier tells apart, in the order of its outputs: "LABEL_0", ... where config.json has no
/// names. Throws Error for fewer than two, and for a model that may give an example several or a number.
std::vector<std::string> class_names(const HubFolder& folder);

// In f32, on the default device, in training mode, with the dropout of `config`. All throw Error for a config that
// describes no model, and where weights are missing, left over or of another shape than it asks for.
std::unique_ptr<nn::LanguageModel> import_language_model(const HubFolder& folder,
                                                         const moe::LanguageModelConfig& config);
std::unique_ptr<nn::TextClassifier> import_text_classifier(const HubFolder& folder,
                                                           const ClassifierModelConfig& config);
std::unique_ptr<nn::VisionTransformer> import_image_classifier(const HubFolder& folder,
                                                               const ClassifierModelConfig& config);

}  // namespace switchyard::train
