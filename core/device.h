#pragma once

#include <ostream>
#include <string_view>

#include "core/error.h"

namespace switchyard {

/// Where a tensor lives: the CPU, or one CUDA GPU by index.
struct Device {
  enum class Type { cpu, cuda };

  Type type = Type::cpu;
  int index = 0;

  bool is_cuda() const { return type == Type::cuda; }
  bool operator==(const Device&) const = default;

  static Device cpu() { return {}; }
  static Device cuda(int index = 0) { return {Type::cuda, index}; }
  /// Parses "cpu", "cuda" or "cuda:<index>"; throws Error on anything else.
  static Device parse(std::string_view text);
};

std::ostream& operator<<(std::ostream& out, const Device& device);

/// Where tensors and parameters are made that are given no device: the CPU, unless set_default_device said otherwise.
/// The library itself names the device of every tensor it makes; this is for programs that live on one device.
Device default_device();
void set_default_device(Device device);

}  // namespace switchyard
