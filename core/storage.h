#pragma once

#include <cstddef>
#include <memory>

#include "core/device.h"

namespace switchyard {

/// Bytes handed out on one device, by Storage and by nobody else.
struct MemoryStatistics {
  std::size_t current_bytes = 0;
  std::size_t peak_bytes = 0;
  std::size_t allocations = 0;     ///< calls that gave out memory since the program started
  std::size_t reserved_bytes = 0;  ///< held from the system, with what lies idle to be given out again
};

/// Memory in use on `device` now, and its peak since the last reset_peak_memory.
MemoryStatistics memory_statistics(Device device);
/// Sets the peak to what is in use now.
void reset_peak_memory(Device device);

/// A block of bytes on one device, freed with the last reference to it. CPU blocks are 64-byte aligned.
class Storage {
 public:
  /// Allocates `bytes` uninitialised bytes; throws Error with the size when memory is short.
  static std::shared_ptr<Storage> allocate(std::size_t bytes, Device device);
  /// Wraps memory owned by `owner` (a mapped file, say), which is kept alive as long as the block.
  static std::shared_ptr<Storage> borrow(void* data, std::size_t bytes, std::shared_ptr<void> owner);

  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  Storage(std::byte* data, std::size_t bytes, Device device, std::shared_ptr<void> owner);

  std::byte* data_;
  std::size_t bytes_;
  Device device_;
  std::shared_ptr<void> owner_;  // set for borrowed blocks only
};

}  // namespace switchyard
