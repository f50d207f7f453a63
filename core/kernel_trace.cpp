#include "core/kernel_trace.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <iomanip>
#include <map>
#include <sstream>
#include <utility>

#include "core/io/atomic_file.h"
#include "core/name_scope.h"

namespace switchyard {
namespace {

struct Cost {
  std::int64_t calls = 0;
  double seconds = 0, flops = 0, bytes = 0;
};

/// What one op, or the work outside of any, cost in all.
struct OpCost : Cost {
  std::map<std::string, Cost> kernels;
};

template <class Map>
auto by_time(const Map& costs) {
  std::vector<std::pair<typename Map::key_type, typename Map::mapped_type>> sorted(costs.begin(), costs.end());
  std::ranges::stable_sort(sorted, std::ranges::greater{}, [](const auto& item) { return item.second.seconds; });
  return sorted;
}

constexpr int kNameWidth = 50;
constexpr double kLeastShare = 0.001;  // of the time; what costs less is left out

void print_row(std::ostream& out, std::string name, const Cost& cost, double whole, std::int64_t steps) {
  const auto number = [&](double value, int width, int digits) {
    if (value >= 0.5 * std::pow(10, -digits)) out << std::setw(width) << std::setprecision(digits) << value;
    else out << std::setw(width) << "-";
  };
  name.resize(std::min<std::size_t>(name.size(), kNameWidth));
  out << std::left << std::setw(kNameWidth) << name << std::right;
  const auto per_step = static_cast<double>(steps);
  number(static_cast<double>(cost.calls) / per_step, 11, 1);
  number(cost.seconds / per_step * 1e3, 11, 3);
  out << std::setw(8) << std::setprecision(1) << 100 * cost.seconds / whole << "%";
  number(cost.flops / cost.seconds * 1e-12, 10, 1);
  number(cost.bytes / cost.seconds * 1e-9, 9, 0);
  out << "\n";
}

void print_ops(std::ostream& out, const std::map<std::string, OpCost>& ops, double whole, std::int64_t steps) {
  for (const auto& [name, op] : by_time(ops)) {
    if (op.seconds < kLeastShare * whole) continue;
    print_row(out, name, op, whole, steps);
    for (const auto& [kernel, cost] : by_time(op.kernels))
      if (cost.seconds >= kLeastShare * whole) print_row(out, "  " + kernel, cost, whole, steps);
  }
}

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
  else if (!flops_known_) scopes_[open_.front()].flops += flops;
  open_.push_back(scopes_.size());
  scopes_.push_back({name, NameScope::current(), flops, bytes, cuda::activity_clock(), 0});
  cuda::enter_activity_scope(open_.front() + 1);
}

void KernelTrace::closed() {
  cuda::leave_activity_scope();
  scopes_[open_.back()].end = cuda::activity_clock();
  open_.pop_back();
}

void KernelTrace::print(std::ostream& out, std::int64_t steps) const {
  if (activities_.empty()) return;
  std::map<std::string, OpCost> ops;
  std::uint64_t begin = activities_[0].begin, end = 0;
  Cost all;
  std::vector<bool> counted(scopes_.size());
  for (const cuda::Activity& run : activities_) {
    const double seconds = static_cast<double>(run.end - run.begin) * 1e-9, bytes = static_cast<double>(run.bytes);
    begin = std::min(begin, run.begin);
    end = std::max(end, run.end);
    OpCost& op = ops[run.scope > 0 ? scopes_[run.scope - 1].op : "outside of ops"];
    for (Cost* cost : {static_cast<Cost*>(&op), &op.kernels[run.name], &all}) {
      ++cost->calls;
      cost->seconds += seconds;
    }
    op.kernels[run.name].bytes += bytes;
    if (run.scope == 0 || counted[run.scope - 1]) continue;
    counted[run.scope - 1] = true;
    op.flops += scopes_[run.scope - 1].flops;
    op.bytes += scopes_[run.scope - 1].bytes;
  }
  const double whole = static_cast<double>(end - begin) * 1e-9;
  std::ostringstream table;  // keeps the caller's stream formatting as it is
  table << std::left << std::setw(kNameWidth) << "op, and its kernels" << std::right
        << " calls/step    ms/step    share   TFLOP/s     GB/s\n"
        << std::fixed;
  print_ops(table, ops, whole, steps);
  print_row(table, "all kernels, copies and fills", all, whole, steps);
  print_row(table, "nothing runs", {0, whole - all.seconds, 0, 0}, whole, steps);
  out << table.str();
}

void KernelTrace::write_chrome_trace(const std::filesystem::path& path) const {
  constexpr int kHostTrack = 0;
  std::uint64_t origin = UINT64_MAX;
  for (const Scope& scope : scopes_) origin = std::min(origin, scope.begin);
  for (const cuda::Activity& run : activities_) origin = std::min(origin, run.begin);
  boost::json::array events = {track_name(kHostTrack, "ops, on the host")};
  for (const Scope& scope : scopes_) {
    boost::json::object made = event(scope.op, kHostTrack, scope.begin, scope.end, origin);
    made["args"] = {{"module", scope.module}};
    events.push_back(std::move(made));
  }
  std::map<std::uint32_t, int> tracks;
  for (const cuda::Activity& run : activities_) {
    const auto [track, added] = tracks.emplace(run.stream, static_cast<int>(run.stream) + 1);
    if (added) events.push_back(track_name(track->second, "GPU"));
    boost::json::object made = event(run.name, track->second, run.begin, run.end, origin);
    if (run.scope > 0) {
      const Scope& scope = scopes_[run.scope - 1];
      made["args"] = {{"op", scope.op}, {"module", scope.module}};
    }
    events.push_back(std::move(made));
  }
  write_file(path, boost::json::serialize(boost::json::object{{"traceEvents", std::move(events)}}));
}

}  // namespace switchyard
