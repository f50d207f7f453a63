#include "train/import/hub_settings.h"

#include "core/error.h"
#include "train/config_sections.h"

namespace switchyard::train {

namespace json = boost::json;

HubSettings::HubSettings(const std::filesystem::path& file)
    : HubSettings("import: " + file.string(), load_config_object(file, {})) {}

const json::value* HubSettings::find(std::string_view key) const {
  const json::object* place = &values_;
  for (auto dot = key.find('.'); dot != std::string_view::npos; dot = key.find('.')) {
    const json::value* section = place->if_contains(key.substr(0, dot));
    if (!section || !section->is_object()) return nullptr;
    place = &section->get_object();
    key = key.substr(dot + 1);
  }
  const json::value* value = place->if_contains(key);
  return value && !value->is_null() ? value : nullptr;
}

template <class T, class Read>
T HubSettings::value(std::string_view key, const char* kind, const std::optional<T>& fallback, Read read) const {
  const json::value* found = find(key);
  check(found || fallback, where(), "has no ", key);
  if (!found) return *fallback;
  boost::system::error_code error;
  const T result = read(*found, error);
  check(!error, where(), key, ": ", abbreviate(*found), ", expected ", kind);
  return result;
}

std::int64_t HubSettings::integer(std::string_view key, std::optional<std::int64_t> fallback) const {
  return value<std::int64_t>(key, "an integer from 0 to 2^24", fallback, [](const json::value& found, auto& error) {
    const auto number = found.to_number<std::int64_t>(error);
    if (!error && (number < 0 || number > 1 << 24)) error = json::error::not_exact;
    return number;
  });
}

double HubSettings::number(std::string_view key, std::optional<double> fallback) const {
  return value<double>(key, "a number", fallback,
                       [](const json::value& found, auto& error) { return found.to_number<double>(error); });
}

bool HubSettings::boolean(std::string_view key, bool fallback) const {
  return value<bool>(key, "true or false", fallback, [](const json::value& found, auto& error) {
    if (!found.is_bool()) error = json::error::not_bool;
    return found.is_bool() && found.get_bool();
  });
}

std::string HubSettings::text(std::string_view key, const std::optional<std::string>& fallback) const {
  return value<std::string>(key, "a string", fallback, [](const json::value& found, auto& error) {
    if (!found.is_string()) error = json::error::not_string;
    return found.is_string() ? std::string(found.get_string()) : std::string();
  });
}

double HubSettings::single_number(std::string_view key) const {
  return value<double>(key, "a list of one number", {}, [](const json::value& found, auto& error) {
    if (found.is_array() && found.get_array().size() == 1) return found.get_array()[0].to_number<double>(error);
    error = json::error::not_array;
    return 0.0;
  });
}

void HubSettings::expect(std::string_view key, const json::value& expected) const {
  const json::value* found = find(key);
  check(!found || *found == expected, where(), key, ": ", found ? abbreviate(*found) : "",
        " has no counterpart here, expected ", abbreviate(expected));
}

}  // namespace switchyard::train
