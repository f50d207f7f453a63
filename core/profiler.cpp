#include "core/profiler.h"

#include <omp.h>

#include <algorithm>
#include <iomanip>
#include <map>
#include <mutex>
#include <sstream>
#include <string_view>
#include <utility>

namespace switchyard {
namespace detail {

std::atomic<bool> profiler_on{false};

// Records are never destroyed, so that a scope may close after reset_profile.
struct ProfileRecord {
  std::atomic<std::int64_t> calls{0}, nanoseconds{0}, exclusive_nanoseconds{0};
  std::atomic<double> flops{0};
};

}  // namespace detail

namespace {

using detail::ProfileRecord;

std::mutex records_mutex;

std::map<std::string, ProfileRecord, std::less<>>& records() {
  static auto* map = new std::map<std::string, ProfileRecord, std::less<>>;
  return *map;
}

ProfileRecord& record_of(std::string_view name) {
  const std::lock_guard lock(records_mutex);
  auto& map = records();
  const auto found = map.find(name);
  return found != map.end() ? found->second : map[std::string(name)];
}

thread_local ProfileRecord* innermost = nullptr;               // of this thread
std::atomic<ProfileRecord*> innermost_outside_loops{nullptr};  // parent of what a loop's other threads open
std::atomic<ScopeListener*> listener{nullptr};

}  // namespace

void enable_profiler(bool on) { detail::profiler_on = on; }

void set_scope_listener(ScopeListener* installed) { listener.store(installed, std::memory_order_release); }

void reset_profile() {
  const std::lock_guard lock(records_mutex);
  for (auto& [name, record] : records()) {
    record.calls = record.nanoseconds = record.exclusive_nanoseconds = 0;
    record.flops = 0;
  }
}

std::vector<ProfileEntry> profile() {
  std::vector<ProfileEntry> entries;
  const std::lock_guard lock(records_mutex);
  for (const auto& [name, record] : records()) {
    if (record.calls == 0) continue;
    entries.push_back({name, record.calls, static_cast<double>(record.nanoseconds) * 1e-9,
                       static_cast<double>(record.exclusive_nanoseconds) * 1e-9, record.flops});
  }
  std::ranges::stable_sort(entries, std::ranges::greater{}, &ProfileEntry::exclusive_seconds);
  return entries;
}

void print_profile(std::ostream& out) {
  const std::vector<ProfileEntry> entries = profile();
  std::size_t width = 4;
  double total = 0;
  for (const ProfileEntry& entry : entries) {
    width = std::max(width, entry.name.size());
    total += entry.exclusive_seconds;
  }
  std::ostringstream table;  // keeps the caller's stream formatting as it is
  table << std::left << std::setw(static_cast<int>(width)) << "name" << std::right << "   share     seconds       calls"
        << "   GFLOP/s\n"
        << std::fixed;
  for (const ProfileEntry& entry : entries) {
    table << std::left << std::setw(static_cast<int>(width)) << entry.name << std::right << std::setprecision(1)
          << std::setw(7) << (total > 0 ? 100 * entry.exclusive_seconds / total : 0) << "%" << std::setprecision(4)
          << std::setw(12) << entry.exclusive_seconds << std::setw(12) << entry.calls << std::setprecision(1)
          << std::setw(10);
    if (entry.flops > 0 && entry.exclusive_seconds > 0) {
      table << entry.flops / entry.exclusive_seconds * 1e-9 << "\n";
    } else {
      table << "-"
            << "\n";
    }
  }
  table << std::left << std::setw(static_cast<int>(width)) << "all" << std::right << std::setw(8) << "100.0%"
        << std::setprecision(4) << std::setw(12) << total << "\n";
  out << table.str();
}

void ProfileScope::open(const char* name, double flops, double bytes) {
  listener_ = omp_in_parallel() ? nullptr : listener.load(std::memory_order_acquire);
  if (listener_) listener_->opened(name, flops, bytes);
  record_ = &record_of(name);
  enclosing_ = std::exchange(innermost, record_);
  if (!omp_in_parallel()) innermost_outside_loops.store(record_, std::memory_order_relaxed);
  record_->calls.fetch_add(1, std::memory_order_relaxed);
  record_->flops.fetch_add(flops, std::memory_order_relaxed);
  start_ = std::chrono::steady_clock::now();
}

void ProfileScope::close() {
  const auto elapsed = std::chrono::steady_clock::now() - start_;
  const std::int64_t nanoseconds =
      std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count() / omp_get_num_threads();
  record_->nanoseconds.fetch_add(nanoseconds, std::memory_order_relaxed);
  record_->exclusive_nanoseconds.fetch_add(nanoseconds, std::memory_order_relaxed);
  innermost = enclosing_;
  ProfileRecord* parent = enclosing_;
  if (!omp_in_parallel()) {
    innermost_outside_loops.store(enclosing_, std::memory_order_relaxed);
  } else if (!parent) {
    parent = innermost_outside_loops.load(std::memory_order_relaxed);
  }
  if (parent) parent->exclusive_nanoseconds.fetch_sub(nanoseconds, std::memory_order_relaxed);
  if (listener_) listener_->closed();
}

}  // namespace switchyard
