#include "train/schema.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cmath>
#include <sstream>

#include "core/error.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

std::string plain(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

std::string join_path(std::string_view section, std::string_view key) {
  return section.empty() ? std::string(key) : std::string(section) + '.' + std::string(key);
}

std::string_view leaf_of(std::string_view path) { return path.substr(path.rfind('.') + 1); }

std::string_view parent_of(std::string_view path) {
  const auto dot = path.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : path.substr(0, dot);
}

/// `"rope", "xl" or "none"`.
std::string alternatives(const std::vector<std::string_view>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 == names.size() ? " or " : ", ";
    text += '"' + std::string(names[i]) + '"';
  }
  return text;
}

/// "3 is a number"; null needs no "is".
std::string describe(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null: return "null is not a value";
    case json::kind::bool_: return abbreviate(value) + " is a boolean";
    case json::kind::string: return abbreviate(value) + " is a string";
    case json::kind::array: return abbreviate(value) + " is a list";
    case json::kind::object: return abbreviate(value) + " is a section";
    default: return abbreviate(value) + " is a number";
  }
}

[[noreturn]] void wrong_type(const std::string& path, const json::value& value, const std::string& expected) {
  fail("config: ", path, ": ", describe(value), ", expected ", expected);
}

double to_double(const json::value& value) {
  if (value.is_int64()) return static_cast<double>(value.get_int64());
  if (value.is_uint64()) return static_cast<double>(value.get_uint64());
  return value.get_double();
}

std::int64_t read_integer(const std::string& path, const json::value& value, std::int64_t low, std::int64_t high) {
  const std::string range = std::to_string(low) + " to " + std::to_string(high);
  if (!value.is_number()) wrong_type(path, value, "an integer from " + range);
  const double approximate = to_double(value);
  check(std::isfinite(approximate), "config: ", path, ": a number too large to hold, expected ", range);
  check(approximate == std::floor(approximate), "config: ", path, ": ", abbreviate(value),
        " is not a whole number, expected ", range);
  // 2^63 itself is a double, so compare before converting: beyond it the conversion would be undefined.
  const bool representable = value.is_int64() || (approximate >= -0x1p63 && approximate < 0x1p63);
  const std::int64_t exact = value.is_int64() ? value.get_int64()
                             : representable  ? static_cast<std::int64_t>(approximate)
                                              : 0;
  check(representable && exact >= low && exact <= high, "config: ", path, ": ", abbreviate(value),
        " is out of range, expected ", range);
  return exact;
}

double read_number(const std::string& path, const json::value& value, const std::string& allowed) {
  if (!value.is_number()) wrong_type(path, value, "a number, " + allowed);
  const double number = to_double(value);
  check(std::isfinite(number), "config: ", path, ": a number too large to hold, expected ", allowed);
  return number;
}

double read_number(const std::string& path, const json::value& value, double low, double high) {
  const std::string allowed = plain(low) + " to " + plain(high);
  const double number = read_number(path, value, allowed);
  check(number >= low && number <= high, "config: ", path, ": ", abbreviate(value), " is out of range, expected ",
        allowed);
  return number;
}

std::size_t read_choice(const std::string& path, const json::value& value, const std::vector<std::string_view>& names) {
  if (!value.is_string()) wrong_type(path, value, alternatives(names));
  const json::string& name = value.get_string();
  for (std::size_t i = 0; i < names.size(); ++i)
    if (std::string_view(name.data(), name.size()) == names[i]) return i;
  fail("config: ", path, ": ", abbreviate(value), " is unknown, expected ", alternatives(names));
}

/// Levenshtein distance.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string abbreviate(const json::value& value) {
  constexpr std::size_t kLongest = 60;
  // 1e-3 must not come back as 1E-3, which is how Boost.JSON prints it.
  std::string text = value.is_double() ? plain(value.get_double()) : json::serialize(value);
  if (text.size() > kLongest) {
    std::size_t end = kLongest - 3;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // not inside a UTF-8 character
    text.replace(end, std::string::npos, "...");
  }
  return text;
}

void Schema::section(std::string path, std::string meaning) {
  sections_.push_back({std::move(path), std::move(meaning)});
}

template <class Read, class Write>
void Schema::add(std::string_view key, std::string type, std::string allowed, std::string meaning, Read read,
                 Write write) {
  const std::string path = join_path(sections_.back().path, key);
  fields_.push_back({path, std::move(type), std::move(allowed), std::move(meaning),
                     [path, read](const json::value& value) { read(path, value); }, write});
}

void Schema::integer(std::string_view key, std::int64_t& target, std::int64_t low, std::int64_t high,
                     std::string meaning) {
  add(
      key, "integer", std::to_string(low) + " to " + std::to_string(high), std::move(meaning),
      [&target, low, high](const std::string& path, const json::value& v) {
        target = read_integer(path, v, low, high);
      },
      [&target] { return json::value(target); });
}

void Schema::number(std::string_view key, double& target, double low, double high, std::string meaning) {
  add(
      key, "number", plain(low) + " to " + plain(high), std::move(meaning),
      [&target, low, high](const std::string& path, const json::value& v) { target = read_number(path, v, low, high); },
      [&target] { return json::value(target); });
}

void Schema::number_list(std::string_view key, std::vector<double>& target, double low, double high,
                         std::string meaning) {
  add(
      key, "list of numbers", plain(low) + " to " + plain(high) + " each", std::move(meaning),
      [&target, low, high](const std::string& path, const json::value& v) {
        if (!v.is_array()) wrong_type(path, v, "a list of numbers");
        std::vector<double> numbers;
        for (std::size_t i = 0; i < v.get_array().size(); ++i)
          numbers.push_back(read_number(path + '[' + std::to_string(i) + ']', v.get_array()[i], low, high));
        target = std::move(numbers);
      },
      [&target] { return json::value(json::array(target.begin(), target.end())); });
}

void Schema::share(std::string_view key, double& target, std::string meaning) {
  const std::string allowed = "0 or more and below 1";
  add(
      key, "number", allowed, std::move(meaning),
      [&target, allowed](const std::string& path, const json::value& v) {
        const double value = read_number(path, v, allowed);
        check(value >= 0.0 && value < 1.0, "config: ", path, ": ", abbreviate(v), " is out of range, expected ",
              allowed);
        target = value;
      },
      [&target] { return json::value(target); });
}

void Schema::boolean(std::string_view key, bool& target, std::string meaning) {
  add(
      key, "boolean", "true or false", std::move(meaning),
      [&target](const std::string& path, const json::value& v) {
        if (!v.is_bool()) wrong_type(path, v, "true or false");
        target = v.get_bool();
      },
      [&target] { return json::value(target); });
}

void Schema::text(std::string_view key, std::string& target, std::string meaning) {
  add(
      key, "string", "any text", std::move(meaning),
      [&target](const std::string& path, const json::value& v) {
        if (!v.is_string()) wrong_type(path, v, "a string");
        target = std::string(v.get_string());
      },
      [&target] { return json::value(target); });
}

void Schema::text_list(std::string_view key, std::vector<std::string>& target, std::string meaning) {
  add(
      key, "list of strings", "any texts", std::move(meaning),
      [&target](const std::string& path, const json::value& v) {
        if (!v.is_array()) wrong_type(path, v, "a list of strings");
        std::vector<std::string> texts;
        for (std::size_t i = 0; i < v.get_array().size(); ++i) {
          const json::value& item = v.get_array()[i];
          if (!item.is_string()) wrong_type(path + '[' + std::to_string(i) + ']', item, "a string");
          texts.push_back(std::string(item.get_string()));
        }
        target = std::move(texts);
      },
      [&target] { return json::value(json::array(target.begin(), target.end())); });
}

void Schema::add_choice(std::string_view key, const std::vector<std::string_view>& names,
                        std::function<void(std::size_t)> set, std::function<std::size_t()> get, std::string meaning) {
  add(
      key, "string", alternatives(names), std::move(meaning),
      [names, set = std::move(set)](const std::string& path, const json::value& v) {
        set(read_choice(path, v, names));
      },
      [names, get = std::move(get)] { return json::value(names.at(get())); });
}

void Schema::add_choice_list(std::string_view key, const std::vector<std::string_view>& names,
                             std::function<void(const std::vector<std::size_t>&)> set,
                             std::function<std::vector<std::size_t>()> get, std::string meaning) {
  add(
      key, "list of strings", alternatives(names) + " each", std::move(meaning),
      [names, set = std::move(set)](const std::string& path, const json::value& v) {
        if (!v.is_array()) wrong_type(path, v, "a list of " + alternatives(names));
        std::vector<std::size_t> indices;
        for (std::size_t i = 0; i < v.get_array().size(); ++i)
          indices.push_back(read_choice(path + '[' + std::to_string(i) + ']', v.get_array()[i], names));
        set(indices);
      },
      [names, get = std::move(get)] {
        json::array list;
        for (const std::size_t i : get()) list.emplace_back(names[i]);
        return json::value(list);
      });
}

const Schema::Section* Schema::find_section(std::string_view path) const {
  const auto found = std::find_if(sections_.begin(), sections_.end(), [&](const auto& s) { return s.path == path; });
  return found == sections_.end() ? nullptr : &*found;
}

const SchemaField* Schema::find_field(std::string_view path) const {
  const auto found = std::find_if(fields_.begin(), fields_.end(), [&](const auto& f) { return f.path == path; });
  return found == fields_.end() ? nullptr : &*found;
}

void Schema::read(const json::object& config) const { read_section("", config); }

void Schema::read_section(const std::string& section, const json::object& values) const {
  for (const auto& item : values) {
    const std::string key(item.key());
    const std::string path = join_path(section, key);
    // A key that holds a dot is no path: {"model.width": 8} names nothing.
    const bool simple = !key.empty() && key.find('.') == std::string::npos;
    if (const SchemaField* field = simple ? find_field(path) : nullptr) {
      field->read(item.value());
    } else if (simple && find_section(path)) {
      if (!item.value().is_object()) wrong_type(path, item.value(), "a section: { ... }");
      read_section(path, item.value().get_object());
    } else {
      unknown_key(section, key, item.value());
    }
  }
}

void Schema::unknown_key(const std::string& section, const std::string& key, const json::value& value) const {
  std::vector<std::string> here, everywhere;
  const auto collect = [&](const std::string& path) {
    if (path.empty()) return;
    everywhere.push_back(path);
    if (parent_of(path) == section) here.push_back(path);
  };
  for (const SchemaField& field : fields_) collect(field.path);
  for (const Section& s : sections_) collect(s.path);

  const auto nearest = [&](const std::vector<std::string>& paths, std::size_t limit) {
    std::string best;
    for (const std::string& path : paths) {
      const std::size_t distance = edit_distance(leaf_of(path), key);
      if (distance < limit) limit = distance, best = path;
    }
    return best;
  };
  // A slip of the pen in this section, or else a key put into the wrong section.
  std::string suggestion = nearest(here, key.size() / 3 + 2);
  if (suggestion.empty()) suggestion = nearest(everywhere, 1);
  if (suggestion.empty()) suggestion = nearest(everywhere, key.size() / 4 + 1);

  std::string expected = suggestion.empty() ? "expected " : "did you mean " + suggestion + "? Expected ";
  for (std::size_t i = 0; i < here.size(); ++i)
    expected += (i == 0 ? "" : i + 1 == here.size() ? " or " : ", ") + std::string(leaf_of(here[i]));
  const json::string quoted(key.data(), key.size());
  const bool printable = std::all_of(
      key.begin(), key.end(), [](char c) { return static_cast<unsigned char>(c) > 0x20 && c != 0x7f && c != '"'; });
  const std::string name = printable && !key.empty() && key.size() <= 60 ? key : abbreviate(json::value(quoted));
  fail("config: ", join_path(section, name), ": unknown key (with value ", abbreviate(value), "), ", expected);
}

json::object Schema::write() const {
  json::object root;
  for (const SchemaField& field : fields_) {
    json::object* place = &root;
    std::string_view rest = field.path;
    for (auto dot = rest.find('.'); dot != std::string_view::npos; dot = rest.find('.')) {
      json::value& child = (*place)[rest.substr(0, dot)];
      if (!child.is_object()) child.emplace_object();
      place = &child.get_object();
      rest = rest.substr(dot + 1);
    }
    (*place)[rest] = field.write();
  }
  return root;
}

std::string Schema::help() const {
  std::ostringstream out;
  for (const Section& s : sections_) {
    if (s.path.empty()) continue;
    out << '\n' << s.path << ": " << s.meaning << '\n';
    for (const SchemaField& field : fields_) {
      if (parent_of(field.path) != s.path) continue;
      out << "  " << leaf_of(field.path) << " (" << field.type << ", default " << json::serialize(field.write()) << "; "
          << field.allowed << ")\n      " << field.meaning << '\n';
    }
  }
  return out.str();
}

}  // namespace switchyard::train
