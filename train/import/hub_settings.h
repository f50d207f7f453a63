#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace switchyard::train {

/// A JSON object that the transformers library wrote. Errors name where it is from.
class HubSettings {
 public:
  /// `source` begins each error: "import: <file>".
  HubSettings(std::string source, boost::json::object values)
      : source_(std::move(source)), values_(std::move(values)) {}
  /// The object in a file of at most 1 MiB. Throws Error where the file is missing or holds no JSON object.
  explicit HubSettings(const std::filesystem::path& file);

  // A value. `key` is a path through the file's objects: "rope_parameters.rope_theta". Where the key is missing or
  // null, the fallback, or Error where there is none; Error for a value of another kind. Integers are sizes: 0 to 2^24.
  std::int64_t integer(std::string_view key, std::optional<std::int64_t> fallback = {}) const;
  double number(std::string_view key, std::optional<double> fallback = {}) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string text(std::string_view key, const std::optional<std::string>& fallback = {}) const;
  /// The only number of a list.
  double single_number(std::string_view key) const;
  /// Throws Error unless the key has this value, is missing or null: for what is done here in one way only.
  void expect(std::string_view key, const boost::json::value& expected) const;
  /// The value itself; null where it is missing or JSON's null.
  const boost::json::value* find(std::string_view key) const;
  /// What an error about the values begins with.
  std::string where() const { return source_ + ": "; }

 private:
  template <class T, class Read>
  T value(std::string_view key, const char* kind, const std::optional<T>& fallback, Read read) const;

  std::string source_;
  boost::json::object values_;
};

}  // namespace switchyard::train
