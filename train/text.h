#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "data/corpus.h"
#include "data/token_file.h"
#include "data/tokenizer.h"
#include "train/config.h"

namespace switchyard::train {

/// The texts of a run as tokens.
struct TokenizedText {
  std::shared_ptr<const data::Tokenizer> tokenizer;
  data::TokenFile training, validation;
  double tokens_per_byte = 1;  ///< of the validation text, the separators between documents included
};

/// Tokenises the texts that `config` names into `folder`: training.tokens, validation.tokens, and the
/// file of a tokenizer that has one. Files already there are taken as they are, so a run keeps its text whatever
/// becomes of the sources. `report` gets a line for each corpus read.
TokenizedText prepare_text(const Config& config, const std::filesystem::path& folder,
                           const std::function<void(const std::string&)>& report);

/// Makes the folder of a run's text where it is missing, and clears it of what a program that was stopped left behind.
void make_text_folder(const std::filesystem::path& folder);

/// Copies the file of a tokenizer that `config` names into `folder`, unless it is there.
void keep_tokenizer(const TokenizerConfig& config, const std::filesystem::path& folder);
/// As keep_tokenizer; sentencepiece without a file is trained on `training`.
void make_tokenizer(const TokenizerConfig& config, const data::Corpus& training, const std::filesystem::path& folder);

/// The tokenizer of a run, from the folder that one of those above filled. Throws Error for kind none.
std::shared_ptr<const data::Tokenizer> load_tokenizer(const TokenizerConfig& config,
                                                      const std::filesystem::path& folder);

/// Nats per token as bits per byte of text.
double bits_per_byte(double nats_per_token, double tokens_per_byte);

}  // namespace switchyard::train
