#include "core/kernel_table.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <map>
#include <sstream>
#include <utility>

namespace switchyard {
namespace {

constexpr int kNameWidth = 50;
constexpr double kLeastShare = 0.001;  // of the time; what costs less is left out
constexpr double kNearlyAll = 0.9;     // of a call's time: the kernel that takes as much did the call's work

/// Work whose amount is known, and the time it took.
struct Work {
  double flops = 0, bytes = 0, seconds = 0;

  void add(double added_flops, double added_bytes, double added_seconds) {
    flops += added_flops;
    bytes += added_bytes;
    seconds += added_seconds;
  }
};

/// What an op, the work outside of any, or one kernel of either cost in all.
struct Cost {
  std::int64_t runs = 0;  // of kernels
  double seconds = 0;
  Work work;

  void add_run(double run_seconds) {
    ++runs;
    seconds += run_seconds;
  }
};
struct OpCost : Cost {
  std::map<std::string, Cost> kernels;
};
struct Costs {
  std::map<std::string, OpCost> ops;
  Cost all;
  double whole = 0;  // seconds from the first run to the last
};

/// The time of one call: in all, and of its kernels, but for copies and fills.
struct CallTime {
  double seconds = 0;
  std::map<std::string, double> kernels;
};

/// Gives a call's work to its op, and to the kernel that did it.
void add_work(const TracedCall& call, const CallTime& time, OpCost& op) {
  op.work.add(call.flops, call.bytes, time.seconds);
  for (const auto& [kernel, seconds] : time.kernels)
    if (seconds >= kNearlyAll * time.seconds) op.kernels[kernel].work.add(call.flops, call.bytes, seconds);
}

Costs costs_of(const std::vector<TracedCall>& calls, const std::vector<cuda::Activity>& activities) {
  Costs costs;
  std::map<std::uint64_t, CallTime> times;  // by scope
  std::uint64_t begin = activities[0].begin, end = 0;
  for (const cuda::Activity& run : activities) {
    const double seconds = static_cast<double>(run.end - run.begin) * 1e-9;
    begin = std::min(begin, run.begin);
    end = std::max(end, run.end);
    OpCost& op = costs.ops[run.scope > 0 ? calls[run.scope - 1].op : "outside of ops"];
    Cost& kernel = op.kernels[run.name];
    for (Cost* cost : {static_cast<Cost*>(&op), &kernel, &costs.all}) cost->add_run(seconds);
    if (run.bytes > 0) kernel.work.add(0, static_cast<double>(run.bytes), seconds);
    if (run.scope == 0) continue;
    CallTime& time = times[run.scope];
    time.seconds += seconds;
    if (run.bytes == 0) time.kernels[run.name] += seconds;
  }
  for (const auto& [scope, time] : times) add_work(calls[scope - 1], time, costs.ops[calls[scope - 1].op]);
  costs.whole = static_cast<double>(end - begin) * 1e-9;
  return costs;
}

template <class Map>
auto by_time(const Map& costs) {
  std::vector<std::pair<typename Map::key_type, typename Map::mapped_type>> sorted(costs.begin(), costs.end());
  std::ranges::stable_sort(sorted, std::ranges::greater{}, [](const auto& item) { return item.second.seconds; });
  return sorted;
}

class Table {
 public:
  Table(double whole, std::int64_t steps) : whole_(whole), steps_(static_cast<double>(steps)) {
    text_ << std::left << std::setw(kNameWidth) << "op, and its kernels" << std::right
          << " calls/step    ms/step    share   TFLOP/s       GB/s\n"
          << std::fixed;
  }

  /// A row with the rates of `work`, behind each of which `mark` is put.
  void add(std::string name, const Cost& cost, const Work& work, char mark = ' ') {
    name.resize(std::min<std::size_t>(name.size(), kNameWidth));
    text_ << std::left << std::setw(kNameWidth) << name << std::right;
    number(static_cast<double>(cost.runs) / steps_, 11, 1);
    number(cost.seconds / steps_ * 1e3, 11, 3);
    text_ << std::setw(8) << std::setprecision(1) << 100 * cost.seconds / whole_ << "%";
    rate(work.flops / work.seconds * 1e-12, 10, 1, mark);
    rate(work.bytes / work.seconds * 1e-9, 10, 0, mark);
    text_ << "\n";
  }

  void add_ops(const std::map<std::string, OpCost>& ops) {
    for (const auto& [name, op] : by_time(ops)) {
      if (op.seconds < kLeastShare * whole_) continue;
      add(name, op, op.work);
      for (const auto& [kernel, cost] : by_time(op.kernels)) {
        if (cost.seconds < kLeastShare * whole_) continue;
        const bool own = cost.work.seconds > 0;
        add("  " + kernel, cost, own ? cost.work : op.work, own ? ' ' : '*');
      }
    }
  }

  std::string text() const {
    return text_.str() + (marked_ ? "* of the op as a whole: what each of its kernels did is not known\n" : "");
  }

 private:
  bool number(double value, int width, int digits) {
    const bool shown = value >= 0.5 * std::pow(10, -digits);  // not where it is NaN either
    if (shown) text_ << std::setw(width) << std::setprecision(digits) << value;
    else text_ << std::setw(width) << "-";
    return shown;
  }
  void rate(double value, int width, int digits, char mark) {
    const bool shown = number(value, width, digits);
    text_ << (shown ? mark : ' ');
    marked_ |= shown && mark != ' ';
  }

  std::ostringstream text_;  // keeps the formatting of the stream that is printed to
  double whole_, steps_;
  bool marked_ = false;
};

}  // namespace

void print_kernel_table(std::ostream& out, const std::vector<TracedCall>& calls,
                        const std::vector<cuda::Activity>& activities, std::int64_t steps) {
  if (activities.empty()) return;
  const Costs costs = costs_of(calls, activities);
  Table table(costs.whole, steps);
  table.add_ops(costs.ops);
  table.add("all kernels, copies and fills", costs.all, {});
  table.add("nothing runs", {0, costs.whole - costs.all.seconds, {}}, {});
  out << table.text();
}

}  // namespace switchyard
