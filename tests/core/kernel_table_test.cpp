#include "core/kernel_table.h"

#include <gtest/gtest.h>

#include <iterator>
#include <sstream>

namespace switchyard {
namespace {

/// Calls and what the GPU ran for them, made up: one run after the other, each of so many microseconds.
struct Trace {
  std::vector<TracedCall> calls;
  std::vector<cuda::Activity> activities;

  void call(const std::string& op, double flops = 0, double bytes = 0) {
    calls.push_back({op, "", flops, bytes, 0, 0});
  }
  /// Within the last call, unless it is `outside` of any.
  void run(const std::string& kernel, std::uint64_t microseconds, std::uint64_t bytes = 0, bool outside = false) {
    const std::uint64_t begin = activities.empty() ? 5'000 : activities.back().end;
    activities.push_back({kernel, outside ? 0 : calls.size(), begin, begin + 1'000 * microseconds, bytes, 0});
  }

  std::string table(std::int64_t steps) const {
    std::ostringstream out;
    print_kernel_table(out, calls, activities, steps);
    return out.str();
  }
};

/// The words of the row whose name is `name`, those of the name left out.
std::vector<std::string> row(const std::string& table, const std::string& name) {
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    if (line.substr(0, name.size() + 1) != name + " ") continue;
    std::istringstream words(line.substr(name.size()));
    return {std::istream_iterator<std::string>(words), {}};
  }
  ADD_FAILURE() << "no row \"" << name << "\" in\n" << table;
  return {};
}

using Words = std::vector<std::string>;

TEST(KernelTable, AKernelThatDoesAnOpsWorkShowsItsOwnRates) {
  Trace trace;
  for (int step = 0; step < 2; ++step) {
    trace.call("linear", 9.5e9, 9.5e6);  // 100 TFLOP/s in the product's 95 of 100 us
    trace.run("product", 95);
    trace.run("add_parts", 5);
    trace.call("linear", 1e9, 1e6);  // by another kernel
    trace.run("small_product", 10);
  }
  const std::string table = trace.table(2);
  SCOPED_TRACE(table);
  EXPECT_EQ(row(table, "linear"), (Words{"3.0", "0.110", "100.0%", "95.5", "95"}));
  EXPECT_EQ(row(table, "  product"), (Words{"1.0", "0.095", "86.4%", "100.0", "100"}));
  EXPECT_EQ(row(table, "  small_product"), (Words{"1.0", "0.010", "9.1%", "100.0", "100"}));
  EXPECT_EQ(row(table, "  add_parts"), (Words{"1.0", "0.005", "4.5%", "95.5*", "95*"}));
  EXPECT_NE(table.find("\n* of the op as a whole"), std::string::npos);
  EXPECT_EQ(row(table, "all kernels, copies and fills"), (Words{"3.0", "0.110", "100.0%", "-", "-"}));
  EXPECT_EQ(row(table, "nothing runs"), (Words{"-", "-", "0.0%", "-", "-"}));
}

TEST(KernelTable, KernelsThatShareAnOpsWorkShowTheOpsRates) {
  Trace trace;
  trace.call("attention_backward", 1e10);
  trace.run("dq", 40);
  trace.run("dkv", 60);
  const std::string table = trace.table(1);
  EXPECT_EQ(row(table, "attention_backward"), (Words{"2.0", "0.100", "100.0%", "100.0", "-"}));
  EXPECT_EQ(row(table, "  dkv"), (Words{"1.0", "0.060", "60.0%", "100.0*", "-"}));
  EXPECT_EQ(row(table, "  dq"), (Words{"1.0", "0.040", "40.0%", "100.0*", "-"}));
  EXPECT_LT(table.find("dkv"), table.find("dq")) << "the longer first";
}

TEST(KernelTable, RunsOfOneKernelInACallCountTogether) {
  Trace trace;
  trace.call("matmul", 1e9);
  for (int part = 0; part < 4; ++part) trace.run("product", 10);
  EXPECT_EQ(row(trace.table(1), "  product"), (Words{"4.0", "0.040", "100.0%", "25.0", "-"}));
}

TEST(KernelTable, CopiesKnowTheirBytes) {
  Trace trace;
  trace.call("index_add", 0, 3e6);
  trace.run("memset", 10, 1'000'000);
  trace.run("rows", 10);
  trace.run("memcpy", 20, 4'000'000, true);
  const std::string table = trace.table(1);
  SCOPED_TRACE(table);
  EXPECT_EQ(row(table, "index_add"), (Words{"2.0", "0.020", "50.0%", "-", "150"}));
  EXPECT_EQ(row(table, "  memset"), (Words{"1.0", "0.010", "25.0%", "-", "100"}));
  EXPECT_EQ(row(table, "  rows"), (Words{"1.0", "0.010", "25.0%", "-", "150*"}));
  EXPECT_EQ(row(table, "outside of ops"), (Words{"1.0", "0.020", "50.0%", "-", "-"}));
  EXPECT_EQ(row(table, "  memcpy"), (Words{"1.0", "0.020", "50.0%", "-", "200"}));
}

TEST(KernelTable, TimeWithoutKernelsAndWhatIsTooShortToShow) {
  Trace trace;
  trace.call("unary");
  trace.run("map", 5'000);
  trace.run("short", 1);
  trace.activities.push_back({"map", 1, 10'000'000 + 5'000, 15'000'000 + 5'000, 0, 0});
  const std::string table = trace.table(1);
  EXPECT_EQ(row(table, "nothing runs"), (Words{"-", "4.999", "33.3%", "-", "-"}));
  EXPECT_EQ(row(table, "  map"), (Words{"2.0", "10.000", "66.7%", "-", "-"}));
  EXPECT_EQ(table.find("short"), std::string::npos);
  EXPECT_EQ(table.find('*'), std::string::npos);
  EXPECT_EQ(Trace{}.table(1), "");
}

}  // namespace
}  // namespace switchyard
