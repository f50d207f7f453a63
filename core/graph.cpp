#include "core/graph.h"

#include "core/kernels/device.h"

namespace switchyard {

DeviceGraph::DeviceGraph(Device device, const std::function<void()>& work) : device_(device) {
  check(device.is_cuda(), "DeviceGraph: ", device, " cannot record work, expected a GPU (cuda or cuda:<index>)");
  graph_ = cuda::record_graph(device, work);
}

DeviceGraph::~DeviceGraph() { cuda::destroy_graph(graph_, device_); }

void DeviceGraph::replay() const { cuda::launch_graph(graph_, device_); }

}  // namespace switchyard
