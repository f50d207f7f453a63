// What the GPU ran and when, through CUPTI's activity records. The driver fills buffers with them; each kernel's record
// carries a correlation id, and so does the record that tells which scope the thread was in when it queued the kernel.

#include <cupti.h>
#include <cxxabi.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <unordered_map>

#include "core/kernels/device.h"
#include "cuda/check.h"
#include "cuda/context.h"

namespace switchyard::cuda {
namespace {

#if CUPTI_API_VERSION >= 130000
using KernelRecord = CUpti_ActivityKernel10;
using CopyRecord = CUpti_ActivityMemcpy6;
#else
using KernelRecord = CUpti_ActivityKernel9;
using CopyRecord = CUpti_ActivityMemcpy5;
#endif
using FillRecord = CUpti_ActivityMemset4;

// A scope is attached to calls of the runtime and the driver, so these have to be recorded as well.
constexpr std::array kKinds = {
    CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET,
    CUPTI_ACTIVITY_KIND_RUNTIME,           CUPTI_ACTIVITY_KIND_DRIVER, CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION};
constexpr std::size_t kBufferBytes = 4u << 20;

void check_cupti(CUptiResult status, const char* what) {
  if (status == CUPTI_SUCCESS) return;
  const char* reason = "unknown error";
  cuptiGetResultString(status, &reason);
  fail("cuda: ", what, ": ", reason);
}

/// "void switchyard::cuda::(anonymous namespace)::rows<float>(float const*)" -> "rows". CUTLASS's kernels, which cuBLAS
/// uses, all have one name; what tells them apart is the first template argument.
std::string short_name(const char* mangled) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : mangled;
  std::free(demangled);
  constexpr std::string_view kUnnamed = "(anonymous namespace)::";
  for (std::size_t at; (at = name.find(kUnnamed)) != std::string::npos;) name.erase(at, kUnnamed.size());
  if (const std::size_t at = name.find("cutlass::Kernel"); at != std::string::npos)
    name.erase(0, name.find('<', at) + 1);
  name.resize(std::min(name.find_first_of("<(>,"), name.size()));
  return name.substr(name.find_last_of(": ") + 1);
}

/// The records of one session: from record_activities() to take_activities().
struct Session {
  std::mutex mutex;
  std::vector<Activity> activities;
  std::vector<std::uint32_t> correlations;                  // of the activities
  std::unordered_map<std::uint32_t, std::uint64_t> scopes;  // by correlation

  template <class Record>
  void add(const Record& record, std::string name, std::uint64_t bytes) {
    activities.push_back({std::move(name), 0, record.start, record.end, bytes, record.streamId});
    correlations.push_back(record.correlationId);
  }

  void add(const CUpti_Activity* record) {
    switch (record->kind) {
      case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
        const auto& kernel = *reinterpret_cast<const KernelRecord*>(record);
        return add(kernel, short_name(kernel.name), 0);
      }
      case CUPTI_ACTIVITY_KIND_MEMCPY: {
        const auto& copy = *reinterpret_cast<const CopyRecord*>(record);
        return add(copy, "memcpy", copy.copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOD ? 2 * copy.bytes : copy.bytes);
      }
      case CUPTI_ACTIVITY_KIND_MEMSET: {
        const auto& fill = *reinterpret_cast<const FillRecord*>(record);
        return add(fill, "memset", fill.bytes);
      }
      case CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION: {
        const auto& scope = *reinterpret_cast<const CUpti_ActivityExternalCorrelation*>(record);
        scopes[scope.correlationId] = scope.externalId;
        return;
      }
      default: return;
    }
  }

  std::vector<Activity> take() {
    const std::lock_guard lock(mutex);
    for (std::size_t i = 0; i < activities.size(); ++i)
      if (const auto found = scopes.find(correlations[i]); found != scopes.end()) activities[i].scope = found->second;
    correlations.clear();
    scopes.clear();
    return std::exchange(activities, {});
  }
};

Session& session() {
  static auto& it = *new Session;  // CUPTI may deliver a last buffer while the program ends
  return it;
}

void CUPTIAPI give_buffer(std::uint8_t** buffer, std::size_t* bytes, std::size_t* most_records) {
  *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(8, kBufferBytes));
  *bytes = *buffer ? kBufferBytes : 0;
  *most_records = 0;  // as many as fit
}

void CUPTIAPI read_buffer(CUcontext, std::uint32_t, std::uint8_t* buffer, std::size_t, std::size_t valid) {
  Session& records = session();
  const std::lock_guard lock(records.mutex);
  CUpti_Activity* record = nullptr;
  while (valid > 0 && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) records.add(record);
  std::free(buffer);
}

}  // namespace

void record_activities(Device device) {
  synchronize(device);  // what was queued before is not part of it
  check_cupti(cuptiActivityRegisterCallbacks(give_buffer, read_buffer), "cuptiActivityRegisterCallbacks");
  for (const auto kind : kKinds) check_cupti(cuptiActivityEnable(kind), "cuptiActivityEnable");
}

std::vector<Activity> take_activities(Device device) {
  synchronize(device);
  check_cupti(cuptiActivityFlushAll(0), "cuptiActivityFlushAll");
  for (const auto kind : kKinds) check_cupti(cuptiActivityDisable(kind), "cuptiActivityDisable");
  return session().take();
}

void enter_activity_scope(std::uint64_t scope) {
  check_cupti(cuptiActivityPushExternalCorrelationId(CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0, scope),
              "cuptiActivityPushExternalCorrelationId");
}

void leave_activity_scope() {
  std::uint64_t left = 0;
  cuptiActivityPopExternalCorrelationId(CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0, &left);
}

std::uint64_t activity_clock() {
  std::uint64_t now = 0;
  check_cupti(cuptiGetTimestamp(&now), "cuptiGetTimestamp");
  return now;
}

}  // namespace switchyard::cuda
