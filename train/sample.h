#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "nn/sampling.h"
#include "train/config.h"

namespace switchyard::train {

/// The model of a run as its newest good checkpoint holds it, ready for inference.
struct TrainedModel {
  Config config;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::unique_ptr<nn::LanguageModel> model;
  std::int64_t step = 0;
};

/// Loads the model of the run in folder `run`, which may be still training, onto `device` ("" for the run's own).
/// Checkpoints that had to be passed over are told to `report`. Throws Error when there is none.
TrainedModel load_trained_model(const std::filesystem::path& run, const std::string& device,
                                const std::function<void(const std::string&)>& report);

/// Lets `model` continue `prompt`, the beginning of a document, and returns the new text only. A document that ends
/// shows as a line `<|doc|>`. The same seed gives the same text.
std::string generate_text(nn::LanguageModel& model, const data::Tokenizer& tokenizer, const std::string& prompt,
                          const nn::SamplingOptions& options, std::uint64_t seed);

/// What each token of a text adds to it, printable. A character of several tokens comes with its last one, the others
/// are empty; a separator is a line break.
std::vector<std::string> token_texts(const data::Tokenizer& tokenizer, const std::vector<std::int64_t>& ids);

/// `text` fit for a terminal: control characters and bytes that are no UTF-8 become U+FFFD.
std::string printable(const std::string& text);

}  // namespace switchyard::train
