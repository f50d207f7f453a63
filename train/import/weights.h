#pragma once

#include <string_view>
#include <vector>

#include "nn/module.h"
#include "train/import/hub_folder.h"

namespace switchyard::train {

/// Where the weights of one of our modules (or one parameter) stand in the files of another library, and in which form.
struct WeightRule {
  std::string_view ours;    ///< such as "layers.#.attention.query"; # stands for the number of a layer
  std::string_view theirs;  ///< its name there; what follows in our name, ".weight" or ".bias", follows here too
  bool transposed = false;  ///< matrices are stored as [inputs, outputs]
  int part = 0;             ///< of tensors that join the outputs of several layers: which one, from 0 ...
  int parts = 1;            ///< ... of how many, all of one size
  bool leading = false;     ///< the first rows, where more are stored than are asked for
  bool reshaped = false;    ///< the same values in the same order under another shape
  double added = 0;         ///< what their library adds to each value where it uses it
};

/// The names of one family of models.
struct WeightNames {
  std::string_view prefix;        ///< of the model without its head; files of that alone leave it out
  std::vector<WeightRule> rules;  ///< of those that fit a parameter, the first counts
  /// Ends of the names of tensors that hold nothing to be learned, or nothing that is not held elsewhere.
  std::vector<std::string_view> unused;
};

/// Overwrites every parameter of `model` with what `names` says, converted to its dtype. Throws Error where a tensor is
/// missing, does not fit its parameter, or is left over.
void import_weights(const HubFolder& folder, const WeightNames& names, nn::Module& model);

}  // namespace switchyard::train
