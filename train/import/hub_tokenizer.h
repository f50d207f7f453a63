#pragma once

#include <filesystem>
#include <memory>

#include "data/tokenizer.h"

namespace switchyard::train {

/// Reads a tokenizer.json, which holds a whole tokenizer of the transformers library: WordPiece as BERT has it, or
/// byte-level pairs as GPT-2 has them. Throws Error naming the file and what is wrong with it or has no counterpart
/// here, and where the program was built without Unicode's tables.
std::shared_ptr<const data::Tokenizer> load_hub_tokenizer(const std::filesystem::path& path);

}  // namespace switchyard::train
