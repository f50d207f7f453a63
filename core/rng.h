#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace switchyard {

/// The random numbers of one op: element i is word i % 4 of the Philox block number *base + offset + i / 4.
/// The base lives on the device, so a captured CUDA graph draws new numbers at every replay.
struct RandomStream {
  std::uint64_t seed = 0;
  Tensor base;  ///< i64 [1]
  std::uint64_t offset = 0;
};

/// Where a Generator stands; enough to continue it exactly.
struct GeneratorState {
  std::uint64_t seed = 0;
  std::uint64_t position = 0;  ///< Philox blocks used so far

  bool operator==(const GeneratorState&) const = default;
};

/// Hands out consecutive, never overlapping stretches of one Philox sequence. The same seed gives the same numbers
/// on every device.
class Generator {
 public:
  explicit Generator(std::uint64_t seed, Device device = Device::cpu());

  /// Reserves the numbers for a tensor of `numel` elements.
  RandomStream next(std::int64_t numel);
  /// Moves what was handed out since the last call into the base on the device. A training loop calls it once per
  /// step, after the backward pass: streams handed out before must not be used afterwards.
  void end_step();

  /// Reads the base back from the device.
  GeneratorState state() const;
  void set_state(const GeneratorState& state);

  /// Blocks handed out since end_step; recompute() rewinds to it to draw the same numbers again.
  std::uint64_t step_offset() const { return offset_; }
  void set_step_offset(std::uint64_t offset) { offset_ = offset; }

 private:
  std::uint64_t seed_;
  Tensor base_;
  std::uint64_t offset_ = 0;
};

/// The generator that layers draw dropout and expert-dropout masks from, one per device.
Generator& default_generator(Device device);
/// Restarts the default generators of all devices from `seed`.
void seed_all(std::uint64_t seed);

}  // namespace switchyard
