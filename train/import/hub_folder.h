#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "core/io/safetensors.h"

namespace switchyard::train {

/// A model as the Hugging Face Hub holds it and transformers' save_pretrained() writes it: config.json beside
/// model.safetensors, or beside the several files that model.safetensors.index.json lists. Errors name the folder.
class HubFolder {
 public:
  /// Throws Error where a file is missing or damaged, or two of them hold a tensor of one name.
  explicit HubFolder(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  /// The family, "gpt2" or another.
  std::string model_type() const { return text("model_type"); }

  // A value of config.json. `key` is a path through its objects: "rope_parameters.rope_theta". Where the key is missing
  // or null, the fallback, or Error where there is none; Error for a value of another kind. Integers are sizes: 0 to
  // 2^24.
  std::int64_t integer(std::string_view key, std::optional<std::int64_t> fallback = {}) const;
  double number(std::string_view key, std::optional<double> fallback = {}) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string text(std::string_view key, std::optional<std::string> fallback = {}) const;
  /// Throws Error unless the key has this value, is missing or null: for what our models do in one way only.
  void expect(std::string_view key, const boost::json::value& expected) const;

  /// Every tensor with the file that holds it.
  const std::map<std::string, SafetensorsFile, std::less<>>& tensors() const { return tensors_; }
  /// Values in all tensors together.
  std::int64_t total_values() const;
  /// Throws Error where there is none of that name.
  const SafetensorsFile& file_of(std::string_view tensor) const;

 private:
  /// Null where it is missing.
  const boost::json::value* find(std::string_view key) const;
  template <class T, class Read>
  T value(std::string_view key, const char* kind, const std::optional<T>& fallback, Read read) const;

  std::filesystem::path path_;
  boost::json::object config_;
  std::map<std::string, SafetensorsFile, std::less<>> tensors_;
};

}  // namespace switchyard::train
