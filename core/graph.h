#pragma once

#include <functional>

#include "core/device.h"

namespace switchyard {

/// Work of one GPU, recorded once and replayed as a whole by a single launch (a CUDA graph). A replay runs the same
/// kernels on the same addresses, so what is to differ from one replay to the next must lie in tensors that are written
/// before it, or by the work itself. Memory that the work allocates stays reserved for the replays; memory that was in
/// use while recording is handed to nobody else while the graph lives, even when its tensors are gone.
class DeviceGraph {
 public:
  /// Records what `work` does on `device`, a GPU, without executing it. Work that reads results back to the host, or
  /// copies from the host, cannot be recorded and throws Error. Run it a few times before, so that what it makes once
  /// (tables, kernel choices) is there.
  DeviceGraph(Device device, const std::function<void()>& work);
  ~DeviceGraph();
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;

  /// Queues the work once more. Nothing waits.
  void replay() const;

 private:
  Device device_;
  void* graph_;  // the backend's
};

}  // namespace switchyard
