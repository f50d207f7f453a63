#pragma once

#ifdef SWITCHYARD_WITH_CUPTI
#include <cupti.h>
#endif

#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <string>

namespace switchyard::testing {

#ifdef SWITCHYARD_WITH_CUPTI

/// Counts this process's calls of the CUDA runtime and driver while it is alive, those of libraries included.
class CallWatch {
 public:
  static constexpr bool kAvailable = true;

  CallWatch() {
    EXPECT_EQ(cuptiSubscribe(&subscriber_, count, this), CUPTI_SUCCESS);
    for (const auto domain : {CUPTI_CB_DOMAIN_RUNTIME_API, CUPTI_CB_DOMAIN_DRIVER_API})
      EXPECT_EQ(cuptiEnableDomain(1, subscriber_, domain), CUPTI_SUCCESS);
  }
  ~CallWatch() { cuptiUnsubscribe(subscriber_); }
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;

  /// Calls that wait for the device, as "name: times" each; empty for none.
  std::string waiting() const {
    return matching([](const std::string& name) {
      const bool copy = name.starts_with("cudaMemcpy") || name.starts_with("cuMemcpy");
      return contains(name, "Synchronize") || (copy && !contains(name, "Async"));
    });
  }
  /// Calls that ask for device memory or give it back.
  std::string allocating() const {
    return matching([](const std::string& name) {
      return name.starts_with("cudaMalloc") || name.starts_with("cudaFree") || name.starts_with("cuMemAlloc") ||
             name.starts_with("cuMemFree") || name.starts_with("cuMemCreate");
    });
  }

 private:
  static bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

  static void CUPTIAPI count(void* watch, CUpti_CallbackDomain, CUpti_CallbackId, const void* data) {
    const auto* call = static_cast<const CUpti_CallbackData*>(data);
    auto& self = *static_cast<CallWatch*>(watch);
    if (call->callbackSite != CUPTI_API_ENTER) return;
    const std::lock_guard lock(self.mutex_);
    ++self.calls_[call->functionName];
  }

  template <class Wanted>
  std::string matching(Wanted wanted) const {
    std::string text;
    for (const auto& [name, times] : calls_)
      if (wanted(name)) text += name + ": " + std::to_string(times) + "\n";
    return text;
  }

  CUpti_SubscriberHandle subscriber_ = nullptr;
  std::mutex mutex_;
  std::map<std::string, int> calls_;
};

#else

/// Stands in where CUPTI is not found.
class CallWatch {
 public:
  static constexpr bool kAvailable = false;
  std::string waiting() const { return ""; }
  std::string allocating() const { return ""; }
};

#endif

}  // namespace switchyard::testing
