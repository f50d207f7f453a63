#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace switchyard::train {

/// The run's record, `metrics.jsonl`: one JSON object per line, each with a `step`. Lines are only ever appended, each
/// in one write, so whoever reads along sees whole lines.
class MetricsLog {
 public:
  /// Opens `path` for a run that stands at `step`: lines of later steps, and a last line cut short by a kill, are
  /// dropped, so that a resumed run repeats none. Throws Error naming path and cause.
  explicit MetricsLog(std::filesystem::path path, std::int64_t step = 0);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  /// Appends one line: {"step": step, ...values}. A number that is not finite becomes null. Throws Error when the disk
  /// is full; a line cut short is taken back.
  void write(std::int64_t step, const boost::json::object& values);

 private:
  std::filesystem::path path_;
  int file_ = -1;
};

/// All lines of a metrics file, for programs that plot or compare. Throws Error naming the line that is no object.
std::vector<boost::json::object> read_metrics(const std::filesystem::path& path);

}  // namespace switchyard::train
