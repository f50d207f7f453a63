#pragma once

#include <algorithm>
#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

/// A declarative description of a JSON configuration. Each key is declared once, bound to the variable that it sets:
/// the variable's value at that moment is the default. From that one table come reading with checks, writing and help.
/// Every error is one line: `config: model.attention.heads: -2 is out of range, expected 1 to 1024`.
namespace switchyard::train {

/// One key of the configuration.
struct SchemaField {
  std::string path;     ///< "model.attention.heads"
  std::string type;     ///< "integer", "list of strings", ...
  std::string allowed;  ///< "1 to 1024", "\"rope\", \"xl\" or \"none\"", ...
  std::string meaning;
  std::function<void(const boost::json::value&)> read;  ///< sets the bound variable; throws Error on a bad value
  std::function<boost::json::value()> write;
};

class Schema {
 public:
  /// Keys declared from here on belong to section `path` ("model.attention"; its parents come first).
  void section(std::string path, std::string meaning);

  void integer(std::string_view key, std::int64_t& target, std::int64_t low, std::int64_t high, std::string meaning);
  /// A finite number from low to high.
  void number(std::string_view key, double& target, double low, double high, std::string meaning);
  /// A number of at least 0 and below 1.
  void share(std::string_view key, double& target, std::string meaning);
  /// A list of finite numbers from low to high, which may be empty.
  void number_list(std::string_view key, std::vector<double>& target, double low, double high, std::string meaning);
  void boolean(std::string_view key, bool& target, std::string meaning);
  void text(std::string_view key, std::string& target, std::string meaning);
  void text_list(std::string_view key, std::vector<std::string>& target, std::string meaning);
  /// One name of an enum that has a names_of() beside it, in the order of its values.
  template <class E>
  void choice(std::string_view key, E& target, std::string meaning);
  /// One of `allowed`, by its name_of().
  template <class E>
  void choice(std::string_view key, E& target, std::vector<E> allowed, std::string meaning);
  /// A list of names, as choice() of one.
  template <class E>
  void choice_list(std::string_view key, std::vector<E>& target, std::string meaning);

  /// Sets every bound variable that `config` mentions; throws Error on an unknown key, a wrong type or a value out of
  /// range.
  void read(const boost::json::object& config) const;
  /// All keys with their present values, sections as nested objects in the order of declaration.
  boost::json::object write() const;
  /// The table for people: one line per key with type, default, allowed values and meaning.
  std::string help() const;

  const std::vector<SchemaField>& fields() const { return fields_; }

 private:
  struct Section {
    std::string path, meaning;
  };

  template <class Read, class Write>
  void add(std::string_view key, std::string type, std::string allowed, std::string meaning, Read read, Write write);
  void add_choice(std::string_view key, const std::vector<std::string_view>& names,
                  std::function<void(std::size_t)> set, std::function<std::size_t()> get, std::string meaning);
  void add_choice_list(std::string_view key, const std::vector<std::string_view>& names,
                       std::function<void(const std::vector<std::size_t>&)> set,
                       std::function<std::vector<std::size_t>()> get, std::string meaning);
  const Section* find_section(std::string_view path) const;
  const SchemaField* find_field(std::string_view path) const;
  void read_section(const std::string& path, const boost::json::object& values) const;
  [[noreturn]] void unknown_key(const std::string& section, const std::string& key,
                                const boost::json::value& value) const;

  std::vector<Section> sections_ = {{"", ""}};
  std::vector<SchemaField> fields_;
};

/// The value as one short line of JSON, cut after some 60 characters.
std::string abbreviate(const boost::json::value& value);

template <class E>
void Schema::choice(std::string_view key, E& target, std::string meaning) {
  const auto names = names_of(target);
  add_choice(
      key, {names.begin(), names.end()}, [&target](std::size_t i) { target = static_cast<E>(i); },
      [&target] { return static_cast<std::size_t>(target); }, std::move(meaning));
}

template <class E>
void Schema::choice(std::string_view key, E& target, std::vector<E> allowed, std::string meaning) {
  std::vector<std::string_view> names;
  for (const E value : allowed) names.push_back(name_of(value));
  add_choice(
      key, names, [&target, allowed](std::size_t i) { target = allowed[i]; },
      [&target, allowed] {
        return static_cast<std::size_t>(std::find(allowed.begin(), allowed.end(), target) - allowed.begin());
      },
      std::move(meaning));
}

template <class E>
void Schema::choice_list(std::string_view key, std::vector<E>& target, std::string meaning) {
  const auto names = names_of(E{});
  add_choice_list(
      key, {names.begin(), names.end()},
      [&target](const std::vector<std::size_t>& indices) {
        target.clear();
        for (const std::size_t i : indices) target.push_back(static_cast<E>(i));
      },
      [&target] {
        std::vector<std::size_t> indices;
        for (const E value : target) indices.push_back(static_cast<std::size_t>(value));
        return indices;
      },
      std::move(meaning));
}

}  // namespace switchyard::train
