#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "train/import/hub_folder.h"

namespace switchyard::train {

/// Writes an imported language model as the folder of a run `out`: a configuration, the weights as the checkpoint of
/// step 0, and `files` (texts or folders; none: the text built into the program) as its text. The text needs a
/// SentencePiece tokenizer.model beside the weights. Where there is none, such as with GPT-2, there is no text either,
/// and whatever asks the run for its tokenizer gets an Error. Returns whether there is one.
///
/// Throws Error as import_language_model does, and where `out` is a run already.
bool write_imported_run(const HubFolder& folder, const std::vector<std::string>& files,
                        const std::filesystem::path& out, const std::function<void(const std::string&)>& report);

}  // namespace switchyard::train
