#include "core/io/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "core/error.h"

namespace switchyard {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
constexpr std::string_view kTemporaryMark = ".temporary-";

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::filesystem::path temporary_name(const std::filesystem::path& path) {
  static std::atomic<unsigned> count = 0;
  return path.string() + std::string(kTemporaryMark) + std::to_string(::getpid()) + "-" + std::to_string(count++);
}

/// True when the open file still has a name, so nobody took it for an abandoned one.
bool still_linked(int file) {
  struct stat status {};
  return ::fstat(file, &status) == 0 && status.st_nlink > 0;
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  create_temporary();
  buffer_.reserve(kBufferBytes);
}

AtomicFile::~AtomicFile() { remove_temporary(); }

// The lock tells a file being written from one whose writer died: the system drops it with the process.
void AtomicFile::create_temporary() {
  for (;;) {
    temporary_ = temporary_name(path_);
    file_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file_ < 0 && errno == EEXIST) continue;
    check(file_ >= 0, "write: cannot create ", path_.string(), ": ", std::strerror(errno));
    if (::flock(file_, LOCK_EX | LOCK_NB) == 0 ? still_linked(file_) : errno != EWOULDBLOCK) return;
    ::close(std::exchange(file_, -1));
  }
}

void AtomicFile::append(const void* data, std::size_t bytes) {
  check(file_ >= 0, "write: ", path_.string(), ": the file is already committed or abandoned");
  if (bytes == 0) return;
  const auto* at = static_cast<const std::byte*>(data);
  checksum_.update(at, bytes);
  if (buffer_.size() + bytes > kBufferBytes) flush();
  if (bytes >= kBufferBytes) write(at, bytes, size_);
  else buffer_.insert(buffer_.end(), at, at + bytes);
  size_ += bytes;
}

void AtomicFile::overwrite(std::uint64_t offset, const void* data, std::size_t bytes) {
  check(file_ >= 0, "write: ", path_.string(), ": the file is already committed or abandoned");
  check(bytes <= size_ && offset <= size_ - bytes, "write: ", path_.string(), ": cannot overwrite bytes ", offset,
        " + ", bytes, " of ", size_);
  flush();
  write(static_cast<const std::byte*>(data), bytes, offset);
}

void AtomicFile::commit() {
  check(file_ >= 0, "write: ", path_.string(), ": the file is already committed or abandoned");
  flush();
  if (::fsync(file_) != 0) abandon("flush", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) abandon("rename the temporary file to", errno);
  temporary_.clear();
  ::close(std::exchange(file_, -1));

  // The rename itself is durable only once the folder is on the disk.
  const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check(folder >= 0, "write: cannot open the folder of ", path_.string(), ": ", std::strerror(errno));
  const int cause = ::fsync(folder) == 0 ? 0 : errno;
  ::close(folder);
  // Some network and in-memory file systems cannot flush folders and say EINVAL.
  check(cause == 0 || cause == EINVAL, "write: cannot flush the folder of ", path_.string(), ": ",
        std::strerror(cause));
}

void AtomicFile::write(const std::byte* data, std::size_t bytes, std::uint64_t offset) {
  while (bytes > 0) {
    const ssize_t written = ::pwrite(file_, data, bytes, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) abandon("write", written < 0 ? errno : ENOSPC);
    data += written;
    offset += static_cast<std::uint64_t>(written);
    bytes -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::flush() {
  write(buffer_.data(), buffer_.size(), size_ - buffer_.size());
  buffer_.clear();
}

void AtomicFile::abandon(const char* action, int cause) {
  remove_temporary();
  fail("write: cannot ", action, " ", path_.string(), " (", size_, " bytes so far): ", std::strerror(cause));
}

void AtomicFile::remove_temporary() {
  if (file_ < 0) return;
  ::unlink(temporary_.c_str());
  ::close(std::exchange(file_, -1));
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  AtomicFile file(path);
  file.append(content);
  file.commit();
}

std::size_t remove_abandoned_temporaries(const std::filesystem::path& folder) {
  std::size_t removed = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.find(kTemporaryMark) == std::string::npos || !entry.is_regular_file(ignored)) continue;
    const int file = ::open(entry.path().c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0) continue;
    if (::flock(file, LOCK_EX | LOCK_NB) == 0 && ::unlink(entry.path().c_str()) == 0) ++removed;
    ::close(file);
  }
  return removed;
}

}  // namespace switchyard
