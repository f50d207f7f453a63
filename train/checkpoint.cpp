#include "train/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>

#include "core/error.h"
#include "core/io/atomic_file.h"
#include "core/io/checksum.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;

constexpr std::int64_t kFormat = 1;
constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kStateFile = "state.json";
// Neither being written nor being removed, a checkpoint bears no name that a reader would take for a whole one.
constexpr std::string_view kPartial = ".partial";
constexpr std::string_view kRemoved = ".removed";
// state.json opens with its own checksum, which covers everything after this line.
constexpr std::string_view kStateHead = "{\n  \"checksum\": \"";
constexpr std::string_view kStateHeadEnd = "\",\n";
constexpr std::size_t kHexDigits = 16;
constexpr std::uintmax_t kLargestState = std::uintmax_t{1} << 28;

std::string hex(std::uint64_t value) {
  std::string text(kHexDigits, '0');
  for (std::size_t i = kHexDigits; i-- > 0; value >>= 4) text[i] = "0123456789abcdef"[value & 15];
  return text;
}

std::optional<std::int64_t> step_of_name(const std::string& name) {
  std::int64_t step = 0;
  if (!name.starts_with("step-")) return std::nullopt;
  const char* end = name.data() + name.size();
  const auto result = std::from_chars(name.data() + 5, end, step);
  return result.ec == std::errc() && result.ptr == end && name == checkpoint_name(step) ? std::optional(step)
                                                                                        : std::nullopt;
}

void flush_folder(const fs::path& folder) {
  const int file = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check(file >= 0, "cannot open ", folder.string(), ": ", std::strerror(errno));
  const int cause = ::fsync(file) == 0 ? 0 : errno;
  ::close(file);
  // Some network and in-memory file systems cannot flush folders and say EINVAL.
  check(cause == 0 || cause == EINVAL, "cannot flush ", folder.string(), ": ", std::strerror(cause));
}

/// Gives `from` the name `to`; what bore it before, if anything, is then at `from`.
void rename_over(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) return;
  // Nothing there to exchange with, or a file system that cannot exchange.
  std::error_code code;
  if (errno != ENOENT) fs::remove_all(to, code);
  fs::rename(from, to, code);
  check(!code, "cannot rename ", from.string(), ": ", code.message());
}

/// Takes the name away first, so that a kill in between leaves no half checkpoint under it. A folder that resists
/// removal costs space only, and is tried again at the next save.
void remove_checkpoint(const fs::path& path) {
  std::error_code ignored;
  const fs::path removed = path.string() + std::string(kRemoved);
  fs::remove_all(removed, ignored);
  fs::rename(path, removed, ignored);
  fs::remove_all(removed, ignored);
}

void remove_leftovers(const fs::path& folder) {
  std::vector<fs::path> leftovers;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && (name.ends_with(kPartial) || name.ends_with(kRemoved)))
      leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) fs::remove_all(path, ignored);
}

void make_folder(const fs::path& path) {
  std::error_code code;
  fs::create_directories(path, code);
  check(!code, "cannot make the folder ", path.string(), ": ", code.message());
}

void write_checkpoint(const fs::path& folder, const Checkpoint& checkpoint) {
  json::object files;
  const auto save = [&](const char* name, const NamedTensors& tensors) {
    const fs::path path = folder / name;
    const std::uint64_t sum = save_safetensors(path, tensors);
    files[name] = {{"bytes", fs::file_size(path)}, {"checksum", hex(sum)}};
  };
  save(kModelFile, checkpoint.model);
  save(kOptimizerFile, checkpoint.optimizer);

  const json::object content = {
      {"format", kFormat}, {"step", checkpoint.step}, {"files", files}, {"state", checkpoint.state}};
  const std::string body = pretty_json(content).substr(2);  // without its opening "{\n"
  const std::string head = std::string(kStateHead) + hex(checksum(body)) + std::string(kStateHeadEnd);
  write_file(folder / kStateFile, head + body);  // flushes the folder too
}

std::string read_text(const fs::path& path) {
  std::error_code code;
  const std::uintmax_t size = fs::file_size(path, code);
  check(!code, path.string(), ": ", code.message());
  check(size <= kLargestState, path.string(), ": has ", size, " bytes, expected at most ", kLargestState);
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  check(!file.bad() && text.size() == size, path.string(), ": cannot be read");
  return text;
}

json::object read_state(const fs::path& path) {
  const std::string text = read_text(path);
  const std::size_t head = kStateHead.size() + kHexDigits + kStateHeadEnd.size();
  check(text.size() > head && text.starts_with(kStateHead) &&
            std::string_view(text).substr(head - kStateHeadEnd.size(), kStateHeadEnd.size()) == kStateHeadEnd,
        path.string(), ": is no checkpoint state, expected it to open with its checksum");
  const std::string stated = text.substr(kStateHead.size(), kHexDigits);
  const std::string found = hex(checksum(std::string_view(text).substr(head)));
  check(stated == found, path.string(), ": is damaged: its checksum is ", found, ", expected ", stated);
  json::value value = parse_json(text, path.string());
  return std::move(value.get_object());
}

/// The checksum covers the whole text, so what these ask for is there, unless another program wrote the file.
const json::value& member(const json::object& object, const char* key, json::kind kind, const fs::path& path) {
  const json::value* value = object.if_contains(key);
  check(value && value->kind() == kind, path.string(), ": has no valid \"", key, "\"");
  return *value;
}

void verify_file(const fs::path& path, const json::object& files, const fs::path& state_path) {
  const std::string name = path.filename().string();
  const json::object& entry = member(files, name.c_str(), json::kind::object, state_path).get_object();
  const std::int64_t bytes = member(entry, "bytes", json::kind::int64, state_path).get_int64();
  const std::string stated(member(entry, "checksum", json::kind::string, state_path).get_string());
  std::error_code code;
  const std::uintmax_t size = fs::file_size(path, code);
  check(!code, path.string(), ": ", code.message());
  check(size == static_cast<std::uintmax_t>(bytes), path.string(), ": is damaged: it has ", size, " bytes, expected ",
        bytes);
  const std::string found = hex(checksum_of_file(path));
  check(found == stated, path.string(), ": is damaged: its checksum is ", found, ", expected ", stated);
}

OpenCheckpoint open_verified(const fs::path& path) {
  const fs::path state_path = path / kStateFile;
  json::object content = read_state(state_path);
  const std::int64_t format = member(content, "format", json::kind::int64, state_path).get_int64();
  check(format == kFormat, state_path.string(), ": has format ", format, ", this program reads format ", kFormat);
  const json::object& files = member(content, "files", json::kind::object, state_path).get_object();
  verify_file(path / kModelFile, files, state_path);
  verify_file(path / kOptimizerFile, files, state_path);
  const std::int64_t step = member(content, "step", json::kind::int64, state_path).get_int64();
  member(content, "state", json::kind::object, state_path);
  return {path, step, SafetensorsFile::open(path / kModelFile), SafetensorsFile::open(path / kOptimizerFile),
          std::move(content["state"].get_object())};
}

/// The dotted path of the first difference, with both sides; empty when equal.
std::string first_difference(const std::string& path, const json::value& saved, const json::value& present) {
  if (saved.is_object() && present.is_object()) {
    for (const auto& item : saved.get_object()) {
      const std::string key = path + '.' + std::string(item.key());
      const json::value* other = present.get_object().if_contains(item.key());
      const std::string difference = other ? first_difference(key, item.value(), *other)
                                           : key + ' ' + json::serialize(item.value()) + ", this run has no such key";
      if (!difference.empty()) return difference;
    }
    for (const auto& item : present.get_object())
      if (!saved.get_object().contains(item.key()))
        return "no " + path + '.' + std::string(item.key()) + ", this run has " + json::serialize(item.value());
    return {};
  }
  if (saved == present) return {};
  return path + ' ' + json::serialize(saved) + ", this run has " + json::serialize(present);
}

}  // namespace

std::string checkpoint_name(std::int64_t step) {
  const std::string digits = std::to_string(step);
  return "step-" + std::string(digits.size() < 8 ? 8 - digits.size() : 0, '0') + digits;
}

bool holds_weights_only(const OpenCheckpoint& checkpoint) { return checkpoint.optimizer.names().empty(); }

std::vector<std::pair<std::int64_t, fs::path>> list_checkpoints(const fs::path& folder) {
  std::vector<std::pair<std::int64_t, fs::path>> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (const auto step = step_of_name(entry.path().filename().string())) found.emplace_back(*step, entry.path());
  std::sort(found.begin(), found.end());
  return found;
}

fs::path save_checkpoint(const fs::path& folder, const Checkpoint& checkpoint, std::int64_t keep) {
  check(checkpoint.step >= 0, "checkpoint: step ", checkpoint.step, " is out of range, expected at least 0");
  check(keep >= 1, "checkpoint: keep ", keep, " is out of range, expected at least 1");
  const fs::path path = folder / checkpoint_name(checkpoint.step);
  const fs::path partial = path.string() + std::string(kPartial);
  try {
    make_folder(folder);
    remove_leftovers(folder);
    make_folder(partial);
    write_checkpoint(partial, checkpoint);
    rename_over(partial, path);
    flush_folder(folder);
  } catch (const Error& error) {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    fail("checkpoint: ", path.string(), " was not saved: ", error.what());
  } catch (const fs::filesystem_error& error) {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    fail("checkpoint: ", path.string(), " was not saved: ", error.code().message());
  }
  auto present = list_checkpoints(folder);
  const auto later =
      std::partition(present.begin(), present.end(), [&](const auto& item) { return item.first <= checkpoint.step; });
  for (auto item = later; item != present.end(); ++item) remove_checkpoint(item->second);
  present.erase(later, present.end());
  std::sort(present.begin(), present.end());
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < present.size(); ++i)
    remove_checkpoint(present[i].second);
  remove_leftovers(folder);
  return path;
}

OpenCheckpoint open_checkpoint(const fs::path& path) {
  try {
    std::error_code ignored;
    check(fs::is_directory(path, ignored), path.string(), ": is no checkpoint folder");
    return open_verified(path);
  } catch (const Error& error) {
    fail("checkpoint: ", error.what());
  }
}

std::optional<OpenCheckpoint> latest_good(const fs::path& folder,
                                          const std::function<void(const std::string&)>& report) {
  const auto present = list_checkpoints(folder);
  for (std::size_t i = present.size(); i-- > 0;) {
    try {
      return open_checkpoint(present[i].second);
    } catch (const Error& error) {
      report(error.what() + (i > 0 ? "; trying step " + std::to_string(present[i - 1].first)
                                   : std::string("; there is no older one")));
    }
  }
  return std::nullopt;
}

std::optional<OpenCheckpoint> checkpoint_to_continue(const fs::path& folder,
                                                     const std::function<void(const std::string&)>& report) {
  auto checkpoint = latest_good(folder, report);
  check(checkpoint || list_checkpoints(folder).empty(), "checkpoint: ", folder.string(),
        ": all are damaged, expected a whole one to go on from (or none, to begin anew)");
  return checkpoint;
}

void load_tensors(const SafetensorsFile& file, const NamedTensors& targets) {
  const std::string source = "checkpoint: " + file.path().string();
  std::set<std::string> wanted;
  for (const auto& [name, target] : targets) {
    wanted.insert(name);
    check(file.contains(name), source, ": has no tensor '", name, "', which this model has");
    check(file.shape(name) == target.shape() && file.dtype(name) == target.dtype(), source, ": tensor '", name, "' is ",
          file.dtype(name), ' ', file.shape(name), ", this model's is ", target.dtype(), ' ', target.shape());
  }
  for (const std::string& name : file.names())
    check(wanted.count(name) == 1, source, ": tensor '", name, "' is not in this model");
  for (const auto& [name, target] : targets) target.copy_from(file.load(name));
}

void check_same_config(const fs::path& path, const std::string& name, const json::value& saved,
                       const json::value& present) {
  const std::string difference = first_difference(name, saved, present);
  check(difference.empty(), "checkpoint: ", path.string(), ": was made with ", difference);
}

const json::object& state_section(const OpenCheckpoint& checkpoint, const char* name) {
  const json::value* value = checkpoint.state.if_contains(name);
  check(value && value->is_object(), "checkpoint: ", checkpoint.path.string(), ": its state has no section '", name,
        "'");
  return value->get_object();
}

void check_continues(const OpenCheckpoint& checkpoint, const json::object& saved, const json::object& present) {
  for (const char* section : {"model", "data"}) {
    const json::value* value = saved.if_contains(section);
    check(value, "checkpoint: ", checkpoint.path.string(), ": its configuration has no section '", section, "'");
    check_same_config(checkpoint.path, section, *value, present.at(section));
  }
}

json::object to_json(const GeneratorState& state) { return {{"seed", state.seed}, {"position", state.position}}; }

GeneratorState saved_generator(const OpenCheckpoint& checkpoint) {
  const json::object& generator = state_section(checkpoint, "generator");
  const auto number_at = [&](const char* key) {
    const json::value* value = generator.if_contains(key);
    boost::system::error_code error;
    const std::uint64_t number = value ? value->to_number<std::uint64_t>(error) : 0;
    check(value && !error, "checkpoint: ", checkpoint.path.string(), ": its state has no number '", key, "'");
    return number;
  };
  return {number_at("seed"), number_at("position")};
}

}  // namespace switchyard::train
