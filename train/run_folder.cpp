#include "train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "core/error.h"
#include "core/io/atomic_file.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLockFile = "lock";

/// "2026-03-01-142507", local time.
std::string present_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::localtime_r(&now, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%d-%H%M%S", &parts);
  return text.data();
}

/// The process that wrote its number into the lock file, for the message only.
std::string holder_of(int lock) {
  std::array<char, 32> text{};
  const ssize_t length = ::pread(lock, text.data(), text.size() - 1, 0);
  return length > 0 ? "process " + std::string(text.data(), static_cast<std::size_t>(length)) : "another process";
}

void check_is_run(const fs::path& path) {
  std::error_code code;
  check(fs::is_directory(path, code), "run folder: ", path.string(), ": is no folder");
  check(fs::is_regular_file(RunFolder::config_path(path), code), "run folder: ", path.string(),
        ": has no config.json, expected the folder of a run");
}

}  // namespace

RunFolder::RunFolder(fs::path path) : path_(std::move(path)) {
  const fs::path lock_path = path_ / kLockFile;
  lock_ = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  check(lock_ >= 0, "run folder: ", path_.string(), ": cannot be written: ", std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int cause = errno;
    const std::string holder = holder_of(lock_);
    ::close(std::exchange(lock_, -1));
    check(cause == EWOULDBLOCK, "run folder: ", path_.string(), ": cannot be locked: ", std::strerror(cause));
    fail("run folder: ", path_.string(), ": is in use by ", holder);
  }
  const std::string process = std::to_string(::getpid());
  // Without the number the lock holds all the same.
  if (::ftruncate(lock_, 0) == 0 && ::pwrite(lock_, process.data(), process.size(), 0) < 0) return;
}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)),
      lock_(std::exchange(other.lock_, -1)),
      created_(std::exchange(other.created_, false)) {}

RunFolder::~RunFolder() {
  std::error_code ignored;
  if (created_ && !fs::exists(checkpoints_path(), ignored)) fs::remove_all(path_, ignored);
  if (lock_ >= 0) ::close(lock_);
}

RunFolder RunFolder::create(const OutputConfig& output, const boost::json::object& config) {
  const fs::path parent = output.folder;
  std::error_code code;
  fs::create_directories(parent, code);
  check(!code, "run folder: ", parent.string(), ": cannot be made: ", code.message());
  const std::string stem = (output.name.empty() ? "run" : output.name) + '-' + present_time();
  for (int count = 1;; ++count) {
    const fs::path path = parent / (count == 1 ? stem : stem + '-' + std::to_string(count));
    const bool made = fs::create_directory(path, code);
    check(!code, "run folder: ", path.string(), ": cannot be made: ", code.message());
    if (!made) continue;
    RunFolder run(path);
    run.created_ = true;
    run.store(config);
    return run;
  }
}

RunFolder RunFolder::create_at(const fs::path& path) {
  std::error_code code;
  fs::create_directories(path, code);
  check(!code, "run folder: ", path.string(), ": cannot be made: ", code.message());
  const fs::path lock = path / kLockFile;
  check(fs::is_empty(path, code) || fs::exists(lock, code), "run folder: ", path.string(),
        ": holds files but no config.json, expected a new folder or that of a run");
  RunFolder run(path);
  remove_abandoned_temporaries(path);
  for (const auto& entry : fs::directory_iterator(path, code))
    check(entry.path() == lock, "run folder: ", path.string(), ": holds ", entry.path().filename().string(),
          " already, expected a new folder");
  return run;
}

RunFolder RunFolder::open(const fs::path& path) {
  check_is_run(path);
  RunFolder run(path);
  remove_abandoned_temporaries(path);
  return run;
}

boost::json::object RunFolder::read_config_object(const fs::path& run) {
  check_is_run(run);
  return load_config_object(config_path(run), {});
}

Config RunFolder::read_config(const fs::path& run, const std::vector<std::string>& overrides) {
  check_is_run(run);
  return load_config<Config>(config_path(run), overrides);
}

void RunFolder::store(const boost::json::object& config) const { write_file(config_path(), pretty_json(config)); }

}  // namespace switchyard::train
