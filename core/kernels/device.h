#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/storage.h"

// What core asks of the CUDA backend besides kernels. cuda/ implements these; cuda/stub.cpp, linked where
// CUDA is not built, throws an Error that names the call and the CMake switch.
namespace switchyard::cuda {

/// Number of usable GPUs; 0 in a build without CUDA.
int device_count();
void* allocate(std::size_t bytes, Device device);
void deallocate(void* data, std::size_t bytes, Device device) noexcept;
MemoryStatistics memory_statistics(Device device);
void reset_peak_memory(Device device);

/// Copies between any two devices in stream order. A copy to the host, or from one GPU to another, returns when the
/// data is there; a copy from the host returns when the source may be changed.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, std::size_t bytes);
/// Waits until all work queued on the device is done.
void synchronize(Device device);

/// Records what `work` does on the device as a graph; see core/graph.h.
void* record_graph(Device device, const std::function<void()>& work);
void launch_graph(void* graph, Device device);
void destroy_graph(void* graph, Device device) noexcept;

/// One kernel, copy or fill that a GPU ran, as the driver saw it. Times are nanoseconds of activity_clock().
struct Activity {
  std::string name;         ///< the kernel's, without namespaces, template arguments and parameters
  std::uint64_t scope = 0;  ///< the innermost that was entered when it was queued; 0 for none
  std::uint64_t begin = 0, end = 0;
  std::uint64_t bytes = 0;  ///< read and written in the GPU's memory by a copy or a fill
  std::uint32_t stream = 0;
};
/// Has the driver record what the GPUs run, until take_activities() waits for the device, returns it and ends that.
/// Throws Error in a build without CUPTI.
void record_activities(Device device);
std::vector<Activity> take_activities(Device device);
/// Work that this thread queues between the two belongs to `scope`.
void enter_activity_scope(std::uint64_t scope);
void leave_activity_scope();
std::uint64_t activity_clock();

}  // namespace switchyard::cuda
