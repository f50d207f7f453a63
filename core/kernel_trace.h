#pragma once

#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "core/kernel_table.h"
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

  /// Of a stopped trace that covers `steps` alike steps: print_kernel_table().
  void print(std::ostream& out, std::int64_t steps) const;
  /// Of a stopped trace: every op on the host and every kernel, for Perfetto (ui.perfetto.dev) or chrome://tracing.
  void write_chrome_trace(const std::filesystem::path& path) const;

 private:
  void opened(const char* name, double flops, double bytes) override;
  void closed() override;

  Device device_;
  bool running_ = true;
  std::vector<TracedCall> calls_;  // number i is known to the driver as scope i + 1
  std::vector<std::size_t> open_;  // the calls the thread is in; kernels belong to the outermost
  bool flops_known_ = false;       // of the outermost; else it counts those of the scopes inside
  std::vector<cuda::Activity> activities_;
};

}  // namespace switchyard
