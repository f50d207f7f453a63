#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace switchyard {

/// What one kind of work has cost since the last reset_profile.
struct ProfileEntry {
  std::string name;
  std::int64_t calls = 0;
  double seconds = 0;            ///< with the scopes opened inside it
  double exclusive_seconds = 0;  ///< without them; these add up to the time spent in outermost scopes
  double flops = 0;              ///< as given by the callers, without the scopes opened inside
};

/// Turns collecting on or off for the whole process. It is off at the start and then costs one load per scope.
void enable_profiler(bool on);
/// Forgets everything collected so far.
void reset_profile();
/// Everything collected so far, the largest exclusive time first.
std::vector<ProfileEntry> profile();
/// Prints profile() as a table: share of the time, seconds, calls and GFLOP/s by name.
void print_profile(std::ostream& out);

/// Hears of every ProfileScope that is opened outside of parallel loops while the profiler is on, and of its end.
class ScopeListener {
 public:
  virtual ~ScopeListener() = default;
  virtual void opened(const char* name, double flops, double bytes) = 0;
  virtual void closed() = 0;
};
/// Installs the one listener; null removes it. No scope that it heard of may be open then.
void set_scope_listener(ScopeListener* listener);

namespace detail {
struct ProfileRecord;
extern std::atomic<bool> profiler_on;
}  // namespace detail

inline bool profiler_enabled() { return detail::profiler_on.load(std::memory_order_relaxed); }

/// Charges the time from here to the end of the block, and `flops`, to `name`; `bytes` moved are for listeners. Scopes
/// nest. The threads of a parallel loop share its wall time equally, and the scopes they open count as opened by
/// whoever started the loop, so that shares stay shares of wall time.
class ProfileScope {
 public:
  explicit ProfileScope(const char* name, double flops = 0, double bytes = 0) {
    if (profiler_enabled()) [[unlikely]]
      open(name, flops, bytes);
  }
  ~ProfileScope() {
    if (record_) [[unlikely]]
      close();
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  void open(const char* name, double flops, double bytes);
  void close();

  detail::ProfileRecord* record_ = nullptr;
  detail::ProfileRecord* enclosing_ = nullptr;  // on this thread
  ScopeListener* listener_ = nullptr;           // that heard of it
  std::chrono::steady_clock::time_point start_;
};

}  // namespace switchyard
