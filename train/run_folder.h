#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "train/config.h"

namespace switchyard::train {

/// The folder of one run: `config.json` (every key, resolved), `metrics.jsonl`, `text/`, `checkpoints/`, `lock`. While
/// open it holds the lock, so two programs never write into one folder; the system frees it with the process.
class RunFolder {
 public:
  /// Makes `<output.folder>/<output.name>-<date>-<time>` (with -2, -3, ... where that exists) and stores
  /// the config in it. A folder in which no training began (it has no `checkpoints/`), because the start failed, is
  /// removed again at the end. Throws Error naming path and cause.
  static RunFolder create(const OutputConfig& output, const boost::json::object& config);
  static RunFolder create(const Config& config) { return create(config.output, to_json(config)); }
  /// Makes `path` the folder of a run whose config is still to be stored. It must be new, or left behind by a start
  /// that was killed before it stored one. Throws Error naming path and cause, also when another program is at work in
  /// it.
  static RunFolder create_at(const std::filesystem::path& path);
  /// Opens an existing run to go on with it. Throws Error when it is none or another program works in it.
  static RunFolder open(const std::filesystem::path& path);

  ~RunFolder();
  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config_path() const { return config_path(path_); }
  std::filesystem::path metrics_path() const { return path_ / "metrics.jsonl"; }
  /// What a GPU ran during profiled steps.
  std::filesystem::path trace_path() const { return path_ / "trace.json"; }
  std::filesystem::path checkpoints_path() const { return checkpoints_path(path_); }
  std::filesystem::path text_path() const { return text_path(path_); }
  // Of a run that is only read, for which no lock is needed:
  static std::filesystem::path checkpoints_path(const std::filesystem::path& run) { return run / "checkpoints"; }
  /// The run's texts as tokens.
  static std::filesystem::path text_path(const std::filesystem::path& run) { return run / "text"; }
  static std::filesystem::path config_path(const std::filesystem::path& run) { return run / "config.json"; }
  /// The config of a run of any kind. Throws Error when `run` is no run's folder.
  static boost::json::object read_config_object(const std::filesystem::path& run);
  /// Of a language model's run.
  static Config read_config(const std::filesystem::path& run, const std::vector<std::string>& overrides = {});

  /// The config the run was started with, and the overrides of this start.
  Config config(const std::vector<std::string>& overrides = {}) const { return read_config(path_, overrides); }
  /// Replaces the stored config.
  void store(const boost::json::object& config) const;
  void store(const Config& config) const { store(to_json(config)); }

 private:
  explicit RunFolder(std::filesystem::path path);

  std::filesystem::path path_;
  int lock_ = -1;
  bool created_ = false;  // by this object
};

}  // namespace switchyard::train
