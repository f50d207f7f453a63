#include "core/io/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/io/mapped_file.h"

namespace switchyard {
namespace {

static_assert(std::endian::native == std::endian::little, "file formats are read and written in place");

constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87u;
constexpr std::uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Fu;
constexpr std::uint64_t kPrime3 = 0x165667B19E3779F9u;
constexpr std::uint64_t kPrime4 = 0x85EBCA77C2B2AE63u;
constexpr std::uint64_t kPrime5 = 0x27D4EB2F165667C5u;
constexpr std::size_t kBlock = 32;

template <class T>
T load(const unsigned char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

std::uint64_t round(std::uint64_t lane, std::uint64_t word) { return std::rotl(lane + word * kPrime2, 31) * kPrime1; }

void absorb_block(std::array<std::uint64_t, 4>& lanes, const unsigned char* block) {
  for (std::size_t i = 0; i < 4; ++i) lanes[i] = round(lanes[i], load<std::uint64_t>(block + 8 * i));
}

}  // namespace

Checksum::Checksum(std::uint64_t seed)
    : seed_(seed), lanes_{seed + kPrime1 + kPrime2, seed + kPrime2, seed, seed - kPrime1} {}

void Checksum::update(const void* data, std::size_t bytes) {
  if (bytes == 0) return;
  const auto* at = static_cast<const unsigned char*>(data);
  const std::size_t waiting = total_ % kBlock;
  total_ += bytes;
  if (waiting > 0) {
    const std::size_t taken = std::min(bytes, kBlock - waiting);
    std::memcpy(pending_.data() + waiting, at, taken);
    if (waiting + taken < kBlock) return;
    absorb_block(lanes_, pending_.data());
    at += taken;
    bytes -= taken;
  }
  auto lanes = lanes_;  // a local copy stays in registers
  for (; bytes >= kBlock; at += kBlock, bytes -= kBlock) absorb_block(lanes, at);
  lanes_ = lanes;
  std::memcpy(pending_.data(), at, bytes);
}

std::uint64_t Checksum::value() const {
  std::uint64_t hash = seed_ + kPrime5;
  if (total_ >= kBlock) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) + std::rotl(lanes_[3], 18);
    for (const std::uint64_t lane : lanes_) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += total_;

  const unsigned char* at = pending_.data();
  const unsigned char* end = at + total_ % kBlock;
  for (; end - at >= 8; at += 8) hash = std::rotl(hash ^ round(0, load<std::uint64_t>(at)), 27) * kPrime1 + kPrime4;
  for (; end - at >= 4; at += 4) hash = std::rotl(hash ^ (load<std::uint32_t>(at) * kPrime1), 23) * kPrime2 + kPrime3;
  for (; at != end; ++at) hash = std::rotl(hash ^ (*at * kPrime5), 11) * kPrime1;

  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

std::uint64_t checksum(const void* data, std::size_t bytes, std::uint64_t seed) {
  Checksum sum(seed);
  sum.update(data, bytes);
  return sum.value();
}

std::uint64_t checksum(std::string_view bytes, std::uint64_t seed) {
  return checksum(bytes.data(), bytes.size(), seed);
}

std::uint64_t checksum_of_file(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  return checksum(file->data(), file->size());
}

}  // namespace switchyard
