#include "train/import/hub_folder.h"

#include <boost/json/serialize.hpp>
#include <set>

#include "core/error.h"
#include "train/config_sections.h"

namespace switchyard::train {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr const char* kWhole = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

/// The files that hold the weights.
std::set<std::string> weight_files(const fs::path& folder) {
  std::error_code code;
  if (fs::exists(folder / kWhole, code)) return {kWhole};
  check(fs::exists(folder / kIndex, code), "import: ", folder.string(), ": holds neither ", kWhole, " nor ", kIndex);
  const json::object index = load_config_object(folder / kIndex, {});
  const json::value* map = index.if_contains("weight_map");
  check(map && map->is_object(), "import: ", (folder / kIndex).string(), ": has no object 'weight_map'");
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->get_object()) {
    // Only files of the folder itself: what an index says is not trusted further.
    check(file.is_string() && fs::path(file.get_string().c_str()).filename() == file.get_string().c_str(),
          "import: ", (folder / kIndex).string(), ": ", std::string(tensor), " is in ", abbreviate(file),
          ", expected the name of a file beside it");
    files.insert(file.get_string().c_str());
  }
  return files;
}

/// `folder`; throws Error where it is none.
const fs::path& existing(const fs::path& folder) {
  std::error_code code;
  check(fs::is_directory(folder, code), "import: ", folder.string(),
        ": is no folder, expected one with config.json and model.safetensors");
  return folder;
}

}  // namespace

HubSettings::HubSettings(fs::path file) : file_(std::move(file)), values_(load_config_object(file_, {})) {}

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

HubFolder::HubFolder(const fs::path& path) : path_(existing(path)), config_(path / "config.json") {
  for (const std::string& name : weight_files(path)) {
    const SafetensorsFile file = SafetensorsFile::open(path / name);
    for (const std::string& tensor : file.names())
      check(tensors_.emplace(tensor, file).second, "import: ", path.string(), ": ", name, " holds ", tensor,
            ", which another file holds too");
  }
}

const SafetensorsFile& HubFolder::file_of(std::string_view tensor) const {
  const auto at = tensors_.find(tensor);
  check(at != tensors_.end(), "import: ", path_.string(), ": has no tensor ", tensor);
  return at->second;
}

std::int64_t HubFolder::total_values() const {
  std::int64_t total = 0;
  for (const auto& [name, file] : tensors_) total += file.shape(name).numel();
  return total;
}

}  // namespace switchyard::train
