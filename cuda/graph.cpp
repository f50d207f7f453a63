// Recording work as a CUDA graph. All work of a device runs on one stream, so recording the stream records everything,
// and a replay is ordered against the rest by the stream alone.

#include <memory>

#include "core/kernels/device.h"
#include "cuda/allocator.h"
#include "cuda/check.h"
#include "cuda/context.h"

namespace switchyard::cuda {
namespace {

struct Graph {
  cudaGraphExec_t executable = nullptr;
  int pool = 0;           // of the memory it uses
  std::size_t bytes = 0;  // in use while it runs

  ~Graph() {
    if (executable) cudaGraphExecDestroy(executable);
  }
};

/// Runs `work` with the stream recording. Throws what it throws, with the stream back to normal.
cudaGraph_t record(cudaStream_t stream, const std::function<void()>& work) {
  cudaGraph_t recorded = nullptr;
  // Relaxed: asking the driver for memory is allowed meanwhile.
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "recording a graph");
  try {
    work();
  } catch (...) {
    if (cudaStreamEndCapture(stream, &recorded) == cudaSuccess) cudaGraphDestroy(recorded);
    cudaGetLastError();  // the cause is already on its way
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &recorded), "recording a graph");
  return recorded;
}

}  // namespace

void* record_graph(Device device, const std::function<void()>& work) {
  const Context& ctx = context(device);
  auto graph = std::make_unique<Graph>();
  graph->pool = begin_recording(device);
  try {
    const cudaGraph_t recorded = record(ctx.stream, work);
    graph->bytes = end_recording(device);
    const cudaError_t status = cudaGraphInstantiate(&graph->executable, recorded, 0);
    cudaGraphDestroy(recorded);
    check_cuda(status, "cudaGraphInstantiate");
    check_cuda(cudaGraphUpload(graph->executable, ctx.stream), "cudaGraphUpload");
  } catch (...) {
    forget_recording(device, graph->pool);
    throw;
  }
  return graph.release();
}

void launch_graph(void* graph, Device device) {
  const Graph& it = *static_cast<Graph*>(graph);
  count_replay(device, it.bytes);
  check_cuda(cudaGraphLaunch(it.executable, context(device).stream), "cudaGraphLaunch");
}

void destroy_graph(void* graph, Device device) noexcept {
  cudaStreamSynchronize(context(device).stream);  // it may still run
  const int pool = static_cast<Graph*>(graph)->pool;
  delete static_cast<Graph*>(graph);
  forget_recording(device, pool);
}

}  // namespace switchyard::cuda
