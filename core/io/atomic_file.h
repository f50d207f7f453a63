#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "core/io/checksum.h"

namespace switchyard {

/// Writes a file that appears whole or not at all: bytes go to a temporary file in the same folder, which
/// commit() flushes to the disk and renames over `path`. A process killed before that leaves the old file as it was.
/// Every failure (disk full, no permission, ...) throws Error naming path and cause, and removes the temporary.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  /// Removes the temporary file unless commit() succeeded.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(const void* data, std::size_t bytes);
  void append(std::string_view text) { append(text.data(), text.size()); }
  /// Replaces bytes already appended, for headers whose counts are known last. Not part of checksum().
  void overwrite(std::uint64_t offset, const void* data, std::size_t bytes);
  /// Bytes appended so far.
  std::uint64_t size() const { return size_; }
  /// XXH64 of all bytes in the order they were appended.
  std::uint64_t checksum() const { return checksum_.value(); }
  /// Makes the file durable under its real name. Nothing may be appended afterwards.
  void commit();

 private:
  void create_temporary();
  void write(const std::byte* data, std::size_t bytes, std::uint64_t offset);
  void flush();
  [[noreturn]] void abandon(const char* action, int cause);
  void remove_temporary();

  std::filesystem::path path_, temporary_;
  int file_ = -1;
  std::uint64_t size_ = 0;
  std::vector<std::byte> buffer_;  // the last bytes appended, not yet written
  Checksum checksum_;
};

/// Writes `content` to `path` in one go, as AtomicFile does.
void write_file(const std::filesystem::path& path, std::string_view content);

/// Removes the temporary files that killed writers left in `folder`; those still being written stay. Returns how many.
std::size_t remove_abandoned_temporaries(const std::filesystem::path& folder);

}  // namespace switchyard
