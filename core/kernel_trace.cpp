#include "core/kernel_trace.h"

#include <algorithm>
#include <boost/json.hpp>
#include <map>
#include <utility>

#include "core/io/atomic_file.h"
#include "core/name_scope.h"

namespace switchyard {
namespace {

boost::json::object event(const std::string& name, int track, std::uint64_t begin, std::uint64_t end,
                          std::uint64_t origin) {
  return {{"name", name},
          {"ph", "X"},
          {"pid", 0},
          {"tid", track},
          {"ts", static_cast<double>(begin - origin) * 1e-3},
          {"dur", static_cast<double>(end - begin) * 1e-3}};
}

boost::json::object track_name(int track, const char* name) {
  return {{"name", "thread_name"}, {"ph", "M"}, {"pid", 0}, {"tid", track}, {"args", {{"name", name}}}};
}

}  // namespace

KernelTrace::KernelTrace(Device device) : device_(device) {
  check(device.is_cuda(), "KernelTrace: ", device, " runs no kernels to watch, expected a GPU (cuda or cuda:<index>)");
  cuda::record_activities(device);
  set_scope_listener(this);
}

KernelTrace::~KernelTrace() {
  if (!running_) return;
  try {
    stop();
  } catch (const Error&) {  // the error that ends the program is another
  }
}

void KernelTrace::stop() {
  if (!std::exchange(running_, false)) return;
  set_scope_listener(nullptr);
  activities_ = cuda::take_activities(device_);
}

void KernelTrace::opened(const char* name, double flops, double bytes) {
  if (open_.empty()) flops_known_ = flops > 0;
  else if (!flops_known_) calls_[open_.front()].flops += flops;
  open_.push_back(calls_.size());
  calls_.push_back({name, NameScope::current(), flops, bytes, cuda::activity_clock(), 0});
  cuda::enter_activity_scope(open_.front() + 1);
}

void KernelTrace::closed() {
  cuda::leave_activity_scope();
  calls_[open_.back()].end = cuda::activity_clock();
  open_.pop_back();
}

void KernelTrace::print(std::ostream& out, std::int64_t steps) const {
  print_kernel_table(out, calls_, activities_, steps);
}

void KernelTrace::write_chrome_trace(const std::filesystem::path& path) const {
  constexpr int kHostTrack = 0;
  std::uint64_t origin = UINT64_MAX;
  for (const TracedCall& call : calls_) origin = std::min(origin, call.begin);
  for (const cuda::Activity& run : activities_) origin = std::min(origin, run.begin);
  boost::json::array events = {track_name(kHostTrack, "ops, on the host")};
  for (const TracedCall& call : calls_) {
    boost::json::object made = event(call.op, kHostTrack, call.begin, call.end, origin);
    made["args"] = {{"module", call.module}};
    events.push_back(std::move(made));
  }
  std::map<std::uint32_t, int> tracks;
  for (const cuda::Activity& run : activities_) {
    const auto [track, added] = tracks.emplace(run.stream, static_cast<int>(run.stream) + 1);
    if (added) events.push_back(track_name(track->second, "GPU"));
    boost::json::object made = event(run.name, track->second, run.begin, run.end, origin);
    if (run.scope > 0) {
      const TracedCall& call = calls_[run.scope - 1];
      made["args"] = {{"op", call.op}, {"module", call.module}};
    }
    events.push_back(std::move(made));
  }
  write_file(path, boost::json::serialize(boost::json::object{{"traceEvents", std::move(events)}}));
}

}  // namespace switchyard
