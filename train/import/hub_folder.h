#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "core/io/safetensors.h"
#include "train/import/hub_settings.h"

namespace switchyard::train {

/// A model as the Hugging Face Hub holds it and transformers' save_pretrained() writes it: config.json beside
/// model.safetensors, or beside the several files that model.safetensors.index.json lists. Errors name the folder.
class HubFolder {
 public:
  /// Throws Error where a file is missing or damaged, or two of them hold a tensor of one name.
  explicit HubFolder(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  /// Of config.json.
  const HubSettings& config() const { return config_; }
  /// The family, "gpt2" or another.
  std::string model_type() const { return config_.text("model_type"); }

  /// Every tensor with the file that holds it.
  const std::map<std::string, SafetensorsFile, std::less<>>& tensors() const { return tensors_; }
  /// Values in all tensors together.
  std::int64_t total_values() const;
  /// Throws Error where there is none of that name.
  const SafetensorsFile& file_of(std::string_view tensor) const;

 private:
  std::filesystem::path path_;
  HubSettings config_;
  std::map<std::string, SafetensorsFile, std::less<>> tensors_;
};

}  // namespace switchyard::train
