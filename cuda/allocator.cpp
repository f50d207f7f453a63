// Memory of GPUs: an Arena (core/arena.h) for each, which gets its segments from the driver.

#include "cuda/allocator.h"

#include <map>
#include <memory>
#include <mutex>

#include "core/arena.h"
#include "core/kernels/device.h"
#include "cuda/check.h"
#include "cuda/context.h"

namespace switchyard::cuda {
namespace {

class Driver : public SegmentSource {
 public:
  explicit Driver(Device device) : device_(device) {}

  void* obtain(std::size_t bytes) override {
    void* data = nullptr;
    if (cudaMalloc(&data, bytes) == cudaSuccess) return data;
    cudaGetLastError();  // an answer, not an error to be met by the next call
    return nullptr;
  }
  void give_back(void* segment) override { cudaFree(segment); }
  void wait() override { cudaStreamSynchronize(context(device_).stream); }
  Room room() override {
    Room room;
    cudaMemGetInfo(&room.free, &room.total);
    return room;
  }

 private:
  Device device_;
};

Arena& arena(Device device) {
  static std::mutex mutex;
  static auto& arenas = *new std::map<int, std::unique_ptr<Arena>>;  // outlives every tensor in static storage
  const std::lock_guard lock(mutex);
  auto& slot = arenas[device.index];
  if (!slot) slot = std::make_unique<Arena>(device, std::make_unique<Driver>(device));
  return *slot;
}

}  // namespace

void* allocate(std::size_t bytes, Device device) {
  context(device);
  return arena(device).allocate(bytes);
}

void deallocate(void* data, std::size_t, Device device) noexcept { arena(device).deallocate(data); }

MemoryStatistics memory_statistics(Device device) {
  context(device);  // throws where there is no such GPU
  return arena(device).statistics();
}

void reset_peak_memory(Device device) {
  context(device);
  arena(device).reset_peak();
}

int begin_recording(Device device) { return arena(device).begin_recording(); }
std::size_t end_recording(Device device) { return arena(device).end_recording(); }
void forget_recording(Device device, int pool) noexcept { arena(device).forget_recording(pool); }
void count_replay(Device device, std::size_t bytes) { arena(device).count_replay(bytes); }

}  // namespace switchyard::cuda
