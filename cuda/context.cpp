#include "cuda/context.h"

#include <map>
#include <memory>
#include <mutex>

#include "core/kernels/device.h"
#include "cuda/check.h"
#include "cuda/upload.h"

namespace switchyard::cuda {
namespace {

std::unique_ptr<Context> make_context(int index) {
  auto made = std::make_unique<Context>();
  made->index = index;
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
  check_cuda(cudaStreamCreateWithFlags(&made->stream, cudaStreamNonBlocking), "cudaStreamCreate");
  check_cublas(cublasLtCreate(&made->blas), "cublasLtCreate");
  check_cuda(cudaMalloc(&made->blas_workspace, kBlasWorkspaceBytes), "cudaMalloc for cuBLAS's workspace");
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&made->multiprocessors, cudaDevAttrMultiProcessorCount, index),
             "cudaDeviceGetAttribute");
  check_cuda(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, index), "cudaDeviceGetAttribute");
  made->shared_memory_per_block = static_cast<std::size_t>(value);
  check_cuda(cudaDeviceGetAttribute(&value, cudaDevAttrL2CacheSize, index), "cudaDeviceGetAttribute");
  made->cache_bytes = value;
#ifdef SWITCHYARD_HOPPER
  int major = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "cudaDeviceGetAttribute");
  made->hopper = major == 9;
#endif
  return made;
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver or no GPU is an answer, not an error to be met by the next call
    return 0;
  }
  return count;
}

Context& context(Device device) {
  static std::mutex mutex;
  static std::map<int, std::unique_ptr<Context>>& contexts =
      *new std::map<int, std::unique_ptr<Context>>;  // never freed:
  // tensors in static storage may outlive any order of destruction
  static thread_local int current = -1;
  static thread_local Context* current_context = nullptr;
  if (current == device.index && current_context != nullptr) return *current_context;
  const std::lock_guard lock(mutex);
  auto found = contexts.find(device.index);
  if (found == contexts.end()) {
    const int count = device_count();
    check(count > 0,
          "cuda: no GPU was found on this machine (nvidia-smi lists what the driver sees); use --device cpu");
    check(device.index<count, "cuda: there is no ", device, "; this machine has ", count, " GPU", count> 1 ? "s" : "");
    found = contexts.emplace(device.index, make_context(device.index)).first;
  }
  check_cuda(cudaSetDevice(device.index), "cudaSetDevice");
  current = device.index;
  current_context = found->second.get();
  return *current_context;
}

void synchronize(Device device) { check_cuda(cudaStreamSynchronize(context(device).stream), "synchronize"); }

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, std::size_t bytes) {
  const bool two_gpus = to_device.is_cuda() && from_device.is_cuda() && !(to_device == from_device);
  const Context& ctx = context(to_device.is_cuda() ? to_device : from_device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(ctx.stream, &status), "cudaStreamIsCapturing");
  check(status == cudaStreamCaptureStatusNone, "copy: ", bytes, " bytes from ", from_device, " to ", to_device,
        " cannot be part of a graph; copy them before it is recorded or after a replay");
  if (!from_device.is_cuda()) return upload(ctx, to, from, bytes);
  if (two_gpus) {
    synchronize(from_device);
    context(to_device);
  }
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, ctx.stream), "copy between devices");
  // The host is about to read; or the source, which belongs to another stream, may be reused at once.
  if (two_gpus || !to_device.is_cuda()) check_cuda(cudaStreamSynchronize(ctx.stream), "copy between devices");
}

}  // namespace switchyard::cuda
