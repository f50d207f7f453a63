#pragma once

#include <cstddef>
#include <functional>

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

}  // namespace switchyard::cuda
