#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "core/io/safetensors.h"

namespace switchyard::train {

/// The JSON object in a file of a HubFolder. Errors name the file.
class HubSettings {
 public:
  /// Throws Error where the file is missing or holds no JSON object.
  explicit HubSettings(std::filesystem::path file);

  // A value. `key` is a path through the file's objects: "rope_parameters.rope_theta". Where the key is missing or
  // null, the fallback, or Error where there is none; Error for a value of another kind. Integers are sizes: 0 to 2^24.
  std::int64_t integer(std::string_view key, std::optional<std::int64_t> fallback = {}) const;
  double number(std::string_view key, std::optional<double> fallback = {}) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string text(std::string_view key, const std::optional<std::string>& fallback = {}) const;
  /// The only number of a list.
  double single_number(std::string_view key) const;
  /// Throws Error unless the key has this value, is missing or null: for what our models do in one way only.
  void expect(std::string_view key, const boost::json::value& expected) const;
  /// "import: <file>: ", what an error about its contents begins with.
  std::string where() const { return "import: " + file_.string() + ": "; }

 private:
  /// Null where it is missing.
  const boost::json::value* find(std::string_view key) const;
  template <class T, class Read>
  T value(std::string_view key, const char* kind, const std::optional<T>& fallback, Read read) const;

  std::filesystem::path file_;
  boost::json::object values_;
};

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
