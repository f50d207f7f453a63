#pragma once

#include <utility>
#include <vector>

#include "core/profiler.h"
#include "core/tensor.h"

namespace switchyard::ops {

/// The tensor with its elements in C order, as kernels want operands; undefined if it is.
inline Tensor dense(const Tensor& x) { return x.defined() ? x.contiguous() : x; }

/// What operands take in memory; 0 for those that are no tensors.
inline double bytes_of(const Tensor& tensor) { return tensor.defined() ? static_cast<double>(tensor.bytes()) : 0; }
inline double bytes_of(const std::vector<Tensor>& tensors) {
  double sum = 0;
  for (const Tensor& tensor : tensors) sum += bytes_of(tensor);
  return sum;
}
template <class NoTensor>
double bytes_of(const NoTensor&) {
  return 0;
}

/// Calls one of two entry points of the same op. The profiler knows the call by `name`, with the bytes of its operands:
/// what the op must read and write at least.
template <class EntryPoint, class... Operands>
void dispatch(const char* name, double flops, Device device, EntryPoint* on_cpu, EntryPoint* on_gpu,
              const Operands&... operands) {
  const double bytes = profiler_enabled() ? (0.0 + ... + bytes_of(operands)) : 0;
  const ProfileScope scope(name, device.is_cuda() ? flops : 0, bytes);
  (device.is_cuda() ? on_gpu : on_cpu)(operands...);
}

}  // namespace switchyard::ops

/// Calls the entry point `f` of the backend that owns `device`: cpu::f(...) or cuda::f(...).
#define SWITCHYARD_DISPATCH(device, f, ...) SWITCHYARD_DISPATCH_COUNTED(0, device, f, __VA_ARGS__)
/// The same for an op of `flops` operations, for the profiler. (It counts them on a GPU only, where an op is one kernel
/// or a few; on the CPU the matrix products inside are counted.)
#define SWITCHYARD_DISPATCH_COUNTED(flops, device, f, ...) \
  ::switchyard::ops::dispatch(#f, flops, device, ::switchyard::cpu::f, ::switchyard::cuda::f, __VA_ARGS__)
