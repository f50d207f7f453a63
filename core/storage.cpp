#include "core/storage.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <limits>
#include <new>
#include <string>

#include "core/kernels/device.h"

namespace switchyard {
namespace {

struct Counters {
  std::atomic<std::size_t> current{0}, peak{0}, allocations{0};

  void add(std::size_t bytes) {
    const std::size_t now = current.fetch_add(bytes) + bytes;
    std::size_t seen = peak.load();
    while (now > seen && !peak.compare_exchange_weak(seen, now)) {
    }
    allocations.fetch_add(1);
  }
};

Counters cpu_counters;

constexpr std::size_t kAlignment = 64;  // a cache line and an AVX-512 register

#ifdef __GLIBC__
// Left alone, glibc hands every block of 128 KiB and more back to the system when it is freed; the next tensor then
// pays for mapping and clearing the same pages again, which costs more than most elementwise ops. Blocks up to the
// largest size glibc allows here (32 MiB) stay in the process instead.
[[maybe_unused]] const bool keeps_freed_memory = [] {
  return mallopt(M_MMAP_THRESHOLD, 32 << 20) != 0 && mallopt(M_TRIM_THRESHOLD, 1 << 30) != 0;
}();
#endif

/// Bytes that the system could still give to programs, swap included; no limit where it does not tell.
std::size_t available_bytes() {
  constexpr std::size_t kKibibyte = 1024;
  std::ifstream file("/proc/meminfo");
  std::size_t total = 0, value = 0;
  bool known = false;
  for (std::string line; std::getline(file, line);) {
    const bool available = std::sscanf(line.c_str(), "MemAvailable: %zu kB", &value) == 1;
    if (!available && std::sscanf(line.c_str(), "SwapFree: %zu kB", &value) != 1) continue;
    total += value * kKibibyte;
    known = known || available;
  }
  return known ? total : std::numeric_limits<std::size_t>::max();
}

/// Linux promises more memory than there is, and ends the program when it is used; nullptr comes too late. Asking first
/// costs next to nothing beside the clearing of so large a block.
bool exceeds_memory(std::size_t bytes) {
  constexpr std::size_t kWorthAsking = std::size_t{256} << 20;
  return bytes >= kWorthAsking && bytes > available_bytes();
}

}  // namespace

MemoryStatistics memory_statistics(Device device) {
  if (device.is_cuda()) return cuda::memory_statistics(device);
  const std::size_t current = cpu_counters.current.load();
  return {current, cpu_counters.peak.load(), cpu_counters.allocations.load(), current};
}

void reset_peak_memory(Device device) {
  if (device.is_cuda()) return cuda::reset_peak_memory(device);
  cpu_counters.peak = cpu_counters.current.load();
}

Storage::Storage(std::byte* data, std::size_t bytes, Device device, std::shared_ptr<void> owner)
    : data_(data), bytes_(bytes), device_(device), owner_(std::move(owner)) {}

std::shared_ptr<Storage> Storage::allocate(std::size_t bytes, Device device) {
  std::byte* data = nullptr;
  if (bytes > 0) {
    if (device.is_cuda()) {
      data = static_cast<std::byte*>(cuda::allocate(bytes, device));
    } else {
      if (!exceeds_memory(bytes))
        data = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kAlignment}, std::nothrow));
      check(data != nullptr, "allocate: out of memory on cpu: ", bytes, " bytes wanted, ", cpu_counters.current.load(),
            " bytes already in use");
      cpu_counters.add(bytes);
    }
  }
  return std::shared_ptr<Storage>(new Storage(data, bytes, device, nullptr));
}

std::shared_ptr<Storage> Storage::borrow(void* data, std::size_t bytes, std::shared_ptr<void> owner) {
  check(owner != nullptr, "borrow: memory that is not owned by the block needs an owner");
  return std::shared_ptr<Storage>(new Storage(static_cast<std::byte*>(data), bytes, Device::cpu(), std::move(owner)));
}

Storage::~Storage() {
  if (owner_ || data_ == nullptr) return;
  if (device_.is_cuda()) {
    cuda::deallocate(data_, bytes_, device_);
  } else {
    ::operator delete (data_, std::align_val_t{kAlignment});
    cpu_counters.current.fetch_sub(bytes_);
  }
}

}  // namespace switchyard
