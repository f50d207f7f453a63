#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "train/import/hub_folder.h"

namespace switchyard::train {

/// Writes an imported model as the folder of a run `out`: a configuration, changed by `overrides` ("key=value"), and
/// the weights as the checkpoint of step 0.
///
/// A language model gets the texts that data.files names (none: the text built into the program), tokenised. That needs
/// a SentencePiece tokenizer.model beside the weights. Without it there is no text either, and whatever asks the run
/// for its tokenizer gets an Error.
///
/// An image classifier scales grey values as preprocessor_config.json says where there is one. Which images it sees is
/// said by the keys of section `data`, with overrides or in the run's config.json afterwards; images that do not suit
/// it are an Error once a program opens them.
///
/// `report` gets a line about each of these. Throws Error as the functions of models.h do, and where `out` is a run
/// already.
void write_imported_run(const HubFolder& folder, const std::vector<std::string>& overrides,
                        const std::filesystem::path& out, const std::function<void(const std::string&)>& report);

}  // namespace switchyard::train
