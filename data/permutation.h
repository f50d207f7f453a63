#pragma once

#include <bit>
#include <cstdint>

#include "core/error.h"
#include "core/philox.h"

namespace switchyard::data {

/// The random number of a seed for an epoch and a purpose.
inline std::uint64_t epoch_random(std::uint64_t seed, std::int64_t epoch, std::uint64_t purpose) {
  const auto words = philox(seed, static_cast<std::uint64_t>(epoch), purpose);
  return words[0] | std::uint64_t{words[1]} << 32;
}

/// A pseudo-random order of 0 .. size - 1 that needs no table: a Feistel network permutes the next power of four, and
/// results outside the range are sent round again.
class Permutation {
 public:
  Permutation(std::uint64_t size, std::uint64_t key) : size_(size), key_(key) {
    check(size > 0 && size <= (std::uint64_t{1} << 62), "permutation: size ", size, " is not in 1..2^62");
    half_bits_ = static_cast<unsigned>(std::bit_width(size - 1) + 1) / 2;
  }

  /// The number at place `index` (below size) of the order.
  std::uint64_t operator()(std::uint64_t index) const {
    do index = network(index);
    while (index >= size_);
    return index;
  }

 private:
  std::uint64_t network(std::uint64_t index) const {
    const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
    std::uint64_t left = index >> half_bits_, right = index & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const auto words = philox(key_, right, round);
      const std::uint64_t mixed = left ^ ((words[0] | std::uint64_t{words[1]} << 32) & mask);
      left = right;
      right = mixed;
    }
    return (left << half_bits_) | right;
  }

  static constexpr std::uint64_t kRounds = 6;
  std::uint64_t size_, key_;
  unsigned half_bits_;
};

}  // namespace switchyard::data
