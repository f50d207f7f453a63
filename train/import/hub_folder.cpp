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
