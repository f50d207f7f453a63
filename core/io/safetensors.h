#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/io/mapped_file.h"
#include "core/tensor.h"

namespace switchyard {

/// Named tensors in the public safetensors format: 8 bytes little-endian header length, a JSON header, the data.
/// The file is memory mapped; a tensor costs nothing until it is loaded. The header is checked whole on opening:
/// whatever is wrong with it ends in an Error naming the file and the tensor. A handle is cheap to copy.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::filesystem::path& path);

  /// All names, in the order of the header.
  const std::vector<std::string>& names() const { return contents_->names; }
  bool contains(std::string_view name) const;
  const Shape& shape(std::string_view name) const;
  /// Of what load() gives: f32 for F16, which no DType stands for. Throws Error for the other types of the format
  /// that none stands for (U8, F8_E4M3, ...).
  DType dtype(std::string_view name) const;
  /// The tensor, on the CPU. It borrows the mapped file (writing to it never changes the file) unless its data lie
  /// unaligned, when they are copied, or are F16, when they are converted, which is exact. BOOL data other than 0 and 1
  /// throw Error.
  Tensor load(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return contents_->metadata; }
  const std::filesystem::path& path() const { return file_->path(); }

  /// What the header says of one tensor.
  struct Entry {
    std::string type;  ///< as the format names it: "F32", "BF16", ...
    Shape shape;
    std::uint64_t begin = 0, end = 0;  ///< bytes from the start of the data
  };
  struct Contents {
    std::vector<std::string> names;
    std::map<std::string, Entry, std::less<>> entries;
    std::map<std::string, std::string> metadata;
  };

 private:
  SafetensorsFile() = default;
  const Entry& find(const char* op, std::string_view name) const;

  std::shared_ptr<MappedFile> file_;
  std::shared_ptr<const Contents> contents_;
  std::size_t data_begin_ = 0;
};

/// Writes tensors (any device, any strides) and metadata as a safetensors file, whole or not at all (see AtomicFile).
/// Returns the XXH64 of the file.
std::uint64_t save_safetensors(const std::filesystem::path& path,
                               const std::vector<std::pair<std::string, Tensor>>& tensors,
                               const std::map<std::string, std::string>& metadata = {});

}  // namespace switchyard
