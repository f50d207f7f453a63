#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>

namespace switchyard {

/// A whole file mapped into memory. Pages are private: writing to them never changes the file.
/// The mapping lives as long as the last reference to it, so that tensors can borrow from it. The file
/// must not shrink meanwhile; files that this project writes are replaced, never cut.
class MappedFile {
 public:
  /// Throws Error naming the path and the cause when it is not a readable regular file.
  static std::shared_ptr<MappedFile> open(const std::filesystem::path& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  /// First byte; null for an empty file.
  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  MappedFile(std::filesystem::path path, std::byte* data, std::size_t size);

  std::filesystem::path path_;
  std::byte* data_;
  std::size_t size_;
};

}  // namespace switchyard
