#include "core/profiler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <thread>

#include "core/kernel_trace.h"
#include "core/name_scope.h"
#include "core/ops/matmul.h"
#include "core/parallel.h"
#include "tests/support/errors.h"

namespace switchyard {
namespace {

/// Starts from nothing with the profiler on, and leaves it off.
struct ProfilerTest : ::testing::Test {
  ProfilerTest() {
    reset_profile();
    enable_profiler(true);
  }
  ~ProfilerTest() override {
    enable_profiler(false);
    reset_profile();
  }

  static ProfileEntry entry(const std::string& name) {
    for (const ProfileEntry& one : profile())
      if (one.name == name) return one;
    ADD_FAILURE() << "no entry " << name;
    return {};
  }
  static void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(2)); }
};

TEST_F(ProfilerTest, OffCollectsNothing) {
  enable_profiler(false);
  { const ProfileScope scope("work", 10); }
  EXPECT_TRUE(profile().empty());
}

TEST_F(ProfilerTest, NestedScopesAreSubtracted) {
  {
    const ProfileScope outer("outer");
    pause();
    for (int i = 0; i < 3; ++i) {
      const ProfileScope inner("inner", 5);
      pause();
    }
  }
  const ProfileEntry outer = entry("outer"), inner = entry("inner");
  EXPECT_EQ(outer.calls, 1);
  EXPECT_EQ(inner.calls, 3);
  EXPECT_EQ(inner.flops, 15);
  EXPECT_GT(outer.exclusive_seconds, 0);
  EXPECT_NEAR(outer.exclusive_seconds + inner.seconds, outer.seconds, 1e-9);
  EXPECT_EQ(inner.exclusive_seconds, inner.seconds);
}

TEST_F(ProfilerTest, ThreadsOfALoopShareItsWallTime) {
  {
    const ProfileScope outer("outer");
    parallel_for(0, 8, 1, [](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const ProfileScope inner("inner", 1);
        pause();
      }
    });
  }
  const ProfileEntry outer = entry("outer"), inner = entry("inner");
  EXPECT_EQ(inner.calls, 8);
  EXPECT_EQ(inner.flops, 8);
  EXPECT_LE(inner.seconds, outer.seconds);
  EXPECT_NEAR(outer.exclusive_seconds + inner.exclusive_seconds, outer.seconds, 1e-6);
}

TEST_F(ProfilerTest, SeesOpsAndTheirProducts) {
  ops::matmul(Tensor::ones({30, 20}), Tensor::ones({20, 10}));
  EXPECT_EQ(entry("matmul").calls, 1);
  EXPECT_EQ(entry("gemm").calls, 1);
  EXPECT_EQ(entry("gemm").flops, 2.0 * 30 * 20 * 10);
  EXPECT_LE(entry("gemm").seconds, entry("matmul").seconds);
}

TEST_F(ProfilerTest, PrintsOneLinePerName) {
  { const ProfileScope scope("some work", 1e9); }
  { const ProfileScope scope("other"); }
  std::ostringstream out;
  print_profile(out);
  const std::string text = out.str();
  EXPECT_NE(text.find("some work"), std::string::npos) << text;
  EXPECT_NE(text.find("GFLOP/s"), std::string::npos) << text;
  EXPECT_EQ(std::ranges::count(text, '\n'), 4) << text;
}

TEST_F(ProfilerTest, ResetForgets) {
  { const ProfileScope scope("work"); }
  reset_profile();
  EXPECT_TRUE(profile().empty());
}

/// Writes down what it hears.
struct Listener : ScopeListener {
  Listener() { set_scope_listener(this); }
  ~Listener() override { set_scope_listener(nullptr); }
  void opened(const char* name, double flops, double bytes) override {
    std::ostringstream text;
    text << name << " " << flops << " " << bytes << " " << NameScope::current();
    heard.push_back(text.str());
  }
  void closed() override { heard.push_back("end"); }

  std::vector<std::string> heard;
};

TEST_F(ProfilerTest, AListenerHearsOfEveryScopeInOrder) {
  Listener listener;
  {
    const NameScope part("layers.3");
    const ProfileScope outer("outer", 3, 4);
    const ProfileScope inner("inner");
  }
  enable_profiler(false);
  { const ProfileScope scope("unheard"); }
  EXPECT_EQ(listener.heard, (std::vector<std::string>{"outer 3 4 layers.3", "inner 0 0 layers.3", "end", "end"}));
}

TEST_F(ProfilerTest, AnOpNamesTheBytesOfItsOperands) {
  const Tensor x = Tensor::zeros({10, 3}), y = Tensor::zeros({3, 5});
  Listener listener;
  ops::matmul(x, y);
  ASSERT_FALSE(listener.heard.empty());
  EXPECT_EQ(listener.heard[0], "matmul 0 " + std::to_string((30 + 15 + 50) * 4) + " ");
}

TEST(KernelTrace, NeedsAGpu) {
  EXPECT_ERROR(KernelTrace(Device::cpu()), "KernelTrace: cpu runs no kernels to watch, expected a GPU");
}

}  // namespace
}  // namespace switchyard
