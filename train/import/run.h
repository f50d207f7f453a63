#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "train/import/hub_folder.h"

namespace switchyard::train {

/// Writes an imported model as the folder of a run `out`: a configuration, changed by `overrides` ("key=value"), and
/// the weights, in its training.dtype, as the checkpoint of step 0, with which training begins.
///
/// The tokenizer of a model that reads text comes along: a SentencePiece tokenizer.model, or else a tokenizer.json that
/// load_hub_tokenizer takes, of no more tokens than the model embeds. Without either, whatever asks the run for its
/// tokenizer gets an Error. A language model gets the texts that data.files names (none: the text built into the
/// program), tokenised.
///
/// A classifier's data are named by the keys of section `data`, with overrides or in the run's config.json afterwards;
/// what does not suit the model is an Error once a program opens them. Grey values are scaled as
/// preprocessor_config.json says where there is one.
///
/// `report` gets a line about each of these. Throws Error as the functions of models.h do, for overrides that do not
/// fit together, and where `out` is a run already or holds text or checkpoints.
void write_imported_run(const HubFolder& folder, const std::vector<std::string>& overrides,
                        const std::filesystem::path& out, const std::function<void(const std::string&)>& report);

}  // namespace switchyard::train
