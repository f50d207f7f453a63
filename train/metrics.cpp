#include "train/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/io/atomic_file.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

json::value finite_or_null(const json::value& value) {
  if (value.is_double() && !std::isfinite(value.get_double())) return nullptr;
  if (const auto* object = value.if_object()) {
    json::object copy;
    for (const auto& item : *object) copy[item.key()] = finite_or_null(item.value());
    return copy;
  }
  if (const auto* array = value.if_array()) {
    json::array copy;
    for (const json::value& item : *array) copy.push_back(finite_or_null(item));
    return copy;
  }
  return value;
}

/// The step of a whole line; none for a line cut short or foreign.
std::optional<std::int64_t> step_of_line(const std::string& line) {
  try {
    const json::value value = parse_json(line, "metrics");
    const json::object* object = value.if_object();
    const json::value* step = object ? object->if_contains("step") : nullptr;
    return step && step->is_int64() ? std::optional(step->get_int64()) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

/// Rewrites the file without the lines past `step`, unless it has none such.
void drop_later_lines(const std::filesystem::path& path, std::int64_t step) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return;
  std::ifstream in(path, std::ios::binary);
  std::string kept, line;
  bool dropped = false;
  while (std::getline(in, line)) {
    const auto line_step = in.eof() ? std::nullopt : step_of_line(line);  // the last line must end in a line break
    if (line_step && *line_step <= step) kept += line + '\n';
    else dropped = true;
  }
  in.close();
  if (dropped) write_file(path, kept);
}

}  // namespace

MetricsLog::MetricsLog(std::filesystem::path path, std::int64_t step) : path_(std::move(path)) {
  std::error_code code;
  check(!std::filesystem::is_directory(path_, code), "metrics: ", path_.string(), ": is a folder, expected a file");
  drop_later_lines(path_, step);
  file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  check(file_ >= 0, "metrics: ", path_.string(), ": cannot be opened: ", std::strerror(errno));
}

MetricsLog::~MetricsLog() {
  if (file_ >= 0) ::close(file_);
}

void MetricsLog::write(std::int64_t step, const json::object& values) {
  json::object line = {{"step", step}};
  for (const auto& item : values) line[item.key()] = finite_or_null(item.value());
  line["step"] = step;
  const std::string text = json::serialize(line) + '\n';

  struct stat status {};
  const bool known = ::fstat(file_, &status) == 0;
  ssize_t written = -1;
  do written = ::write(file_, text.data(), text.size());
  while (written < 0 && errno == EINTR);
  if (written == static_cast<ssize_t>(text.size())) return;
  const int cause = written < 0 ? errno : ENOSPC;
  if (known && written > 0 && ::ftruncate(file_, status.st_size) != 0) {
    // The half line stays; drop_later_lines() removes it when the run goes on.
  }
  fail("metrics: ", path_.string(), ": cannot be written: ", std::strerror(cause));
}

std::vector<json::object> read_metrics(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  check(in.is_open(), "metrics: ", path.string(), ": cannot be opened: ", std::strerror(errno));
  std::vector<json::object> lines;
  std::string line;
  while (std::getline(in, line)) {
    const std::string source = "metrics: " + path.string() + ", entry " + std::to_string(lines.size() + 1);
    json::value value = parse_json(line, source);
    check(value.is_object(), source, ": is no JSON object");
    lines.push_back(std::move(value.get_object()));
  }
  return lines;
}

}  // namespace switchyard::train
