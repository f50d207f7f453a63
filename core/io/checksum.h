#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>

namespace switchyard {

/// XXH64 (Yann Collet's xxHash, 64-bit variant) of bytes that arrive in pieces. It detects damage, not tampering.
class Checksum {
 public:
  explicit Checksum(std::uint64_t seed = 0);

  void update(const void* data, std::size_t bytes);
  /// The hash of everything so far; more may follow.
  std::uint64_t value() const;

 private:
  std::uint64_t seed_;
  std::uint64_t total_ = 0;
  std::array<std::uint64_t, 4> lanes_;
  std::array<unsigned char, 32> pending_;  // total_ % 32 bytes are waiting here
};

/// XXH64 of one block of bytes.
std::uint64_t checksum(const void* data, std::size_t bytes, std::uint64_t seed = 0);
std::uint64_t checksum(std::string_view bytes, std::uint64_t seed = 0);
/// XXH64 of a file's content; throws Error when it cannot be read.
std::uint64_t checksum_of_file(const std::filesystem::path& path);

}  // namespace switchyard
