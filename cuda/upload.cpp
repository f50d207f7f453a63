// Copies from the host. The driver copies asynchronously from pinned memory only; from ordinary memory it waits for the
// stream first. A buffer whose copy is still to come is not waited for either: another one is made. Their number is
// bounded by how far the host can run ahead of the device.

#include "cuda/upload.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <vector>

#include "cuda/check.h"

namespace switchyard::cuda {
namespace {

constexpr std::size_t kSmallest = 64u << 10, kLargest = 16u << 20;

struct Buffer {
  int device;
  std::size_t bytes;
  void* data;
  cudaEvent_t copied;
};

bool idle(const Buffer& buffer) {
  const cudaError_t status = cudaEventQuery(buffer.copied);
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // an answer, not an error to be met by the next call
    return false;
  }
  check_cuda(status, "cudaEventQuery");
  return true;
}

const Buffer& idle_buffer(std::vector<Buffer>& buffers, int device, std::size_t bytes) {
  const std::size_t size = std::bit_ceil(std::max(bytes, kSmallest));
  for (const Buffer& buffer : buffers)
    if (buffer.device == device && buffer.bytes == size && idle(buffer)) return buffer;
  Buffer made{device, size, nullptr, nullptr};
  check_cuda(cudaHostAlloc(&made.data, size, cudaHostAllocDefault), "cudaHostAlloc");
  check_cuda(cudaEventCreateWithFlags(&made.copied, cudaEventDisableTiming), "cudaEventCreate");
  return buffers.emplace_back(made);
}

}  // namespace

void upload(const Context& ctx, void* to, const void* from, std::size_t bytes) {
  if (bytes > kLargest) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, ctx.stream), "copy from the host");
    return;
  }
  static std::mutex mutex;
  static auto& buffers = *new std::vector<Buffer>;  // never freed: the driver may be gone before static storage is
  const std::lock_guard lock(mutex);
  const Buffer& buffer = idle_buffer(buffers, ctx.index, bytes);
  std::memcpy(buffer.data, from, bytes);
  check_cuda(cudaMemcpyAsync(to, buffer.data, bytes, cudaMemcpyHostToDevice, ctx.stream), "copy from the host");
  check_cuda(cudaEventRecord(buffer.copied, ctx.stream), "cudaEventRecord");
}

}  // namespace switchyard::cuda
