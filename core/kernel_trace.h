#pragma once

#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "core/kernels/device.h"
#include "core/profiler.h"

namespace switchyard {

/// Watches what a GPU runs, and which op in which part of the model asked for it, from its construction to stop(). Only
/// one may be alive. The host takes a few microseconds longer per op meanwhile; the GPU is not slowed down.
class KernelTrace : private ScopeListener {
 public:
  /// Throws Error for the CPU, and in a build without CUPTI.
  explicit KernelTrace(Device device);
  ~KernelTrace() override;
  KernelTrace(const KernelTrace&) = delete;
  KernelTrace& operator=(const KernelTrace&) = delete;

  /// Waits for the device and ends the watch. No ProfileScope opened since may be open.
  void stop();

  /// Of a stopped trace that covers `steps` alike steps: a table of ops by time, and of the kernels each one used.
  /// Rates count the operations and bytes that the op's ProfileScope named; bytes are those of its operands, so that an
  /// op which reads something twice shows less than the memory delivers.
  void print(std::ostream& out, std::int64_t steps) const;
  /// Of a stopped trace: every op on the host and every kernel, for Perfetto (ui.perfetto.dev) or chrome://tracing.
  void write_chrome_trace(const std::filesystem::path& path) const;

 private:
  struct Scope {
    std::string op, module;
    double flops = 0, bytes = 0;
    std::uint64_t begin = 0, end = 0;
  };

  void opened(const char* name, double flops, double bytes) override;
  void closed() override;

  Device device_;
  bool running_ = true;
  std::vector<Scope> scopes_;      // number i is known to the driver as i + 1
  std::vector<std::size_t> open_;  // the scopes the thread is in; kernels belong to the outermost
  bool flops_known_ = false;       // of the outermost; else it counts those of the scopes inside
  std::vector<cuda::Activity> activities_;
};

}  // namespace switchyard
