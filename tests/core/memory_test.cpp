#include <gtest/gtest.h>
#include <sys/sysinfo.h>

#include <thread>
#include <vector>

#include "core/kernels/device.h"
#include "core/storage.h"
#include "core/tensor.h"
#include "tests/support/close.h"

namespace switchyard {
namespace {

MemoryStatistics now() { return memory_statistics(Device::cpu()); }

TEST(Memory, CountsBlocksUntilTheirLastReference) {
  const MemoryStatistics before = now();
  {
    Tensor a = Tensor::empty({100, 10});
    EXPECT_EQ(now().current_bytes - before.current_bytes, 4000u);
    EXPECT_EQ(now().allocations - before.allocations, 1u);
    const Tensor view = a.slice(0, 3, 4).transpose(0, 1), handle = a;  // neither copies elements
    EXPECT_EQ(now().allocations - before.allocations, 1u);
    a = Tensor();
    EXPECT_EQ(now().current_bytes - before.current_bytes, 4000u);
    const Tensor copy = view.clone();
    EXPECT_EQ(now().current_bytes - before.current_bytes, 4040u);
  }
  EXPECT_EQ(now().current_bytes, before.current_bytes);
}

TEST(Memory, PeakIsTheLargestUseSinceItsReset) {
  reset_peak_memory(Device::cpu());
  const std::size_t start = now().current_bytes;
  EXPECT_EQ(now().peak_bytes, start);
  {
    const Tensor first = Tensor::empty({1000}, DType::f64);
    const Tensor second = Tensor::empty({500}, DType::f64);
  }
  const Tensor third = Tensor::empty({1000}, DType::f64);
  EXPECT_EQ(now().peak_bytes, start + 12000);
  EXPECT_EQ(now().current_bytes, start + 8000);
  reset_peak_memory(Device::cpu());
  EXPECT_EQ(now().peak_bytes, start + 8000);
}

TEST(Memory, EmptyTensorsTakeNone) {
  const MemoryStatistics before = now();
  const Tensor none = Tensor::empty({3, 0});
  EXPECT_EQ(now().current_bytes, before.current_bytes);
  EXPECT_EQ(now().allocations, before.allocations);
}

TEST(Memory, BorrowedBlocksAreNotCountedAndKeepTheirOwner) {
  const MemoryStatistics before = now();
  auto values = std::make_shared<std::vector<float>>(std::vector<float>{1, 2, 3, 4});
  const std::weak_ptr<void> alive = values;
  {
    Tensor x = Tensor::view_of(Storage::borrow(values->data(), 16, values), {2, 2}, {2, 1}, 0, DType::f32);
    EXPECT_EQ(now().current_bytes, before.current_bytes);
    values.reset();
    const Tensor row = x.select(0, 1);
    x = Tensor();
    EXPECT_FALSE(alive.expired());
    EXPECT_EQ(row.to_vector<float>(), (std::vector<float>{3, 4}));
  }
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(now().current_bytes, before.current_bytes);
  EXPECT_ERROR(Storage::borrow(nullptr, 0, nullptr), "borrow: ");
}

TEST(Memory, BlocksAreAlignedForSimd) {
  for (std::int64_t size = 1; size < 200; size += 13)
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(Tensor::empty({size}, DType::bf16).raw()) % 64, 0u);
}

TEST(Memory, CountsAcrossThreads) {
  const MemoryStatistics before = now();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([] {
      for (int round = 0; round < 500; ++round) Tensor::empty({round});
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(now().current_bytes, before.current_bytes);
  EXPECT_EQ(now().allocations - before.allocations, 4u * 499u);
}

TEST(Memory, ImpossibleSizesAreOneLine) {
  EXPECT_ERROR(Tensor::empty({std::int64_t{1} << 40, std::int64_t{1} << 40}), "is too large to address");
  EXPECT_ERROR(Tensor::empty({-1}), "empty: negative size in shape [-1]");
  EXPECT_ERROR(Tensor::empty({std::int64_t{1} << 55}), "allocate: out of memory on cpu: ");
}

// Linux grants such a request: only what is in use already makes it too large, and writing to it ends the program.
TEST(Memory, AllOfTheMachinesMemoryIsTooMuch) {
  struct sysinfo machine {};
  ASSERT_EQ(sysinfo(&machine), 0);
  const auto bytes = static_cast<std::int64_t>((machine.totalram + machine.totalswap) * machine.mem_unit);
  EXPECT_ERROR(Tensor::empty({bytes}, DType::boolean), "allocate: out of memory on cpu: ");
}

TEST(Memory, AGpuThatIsNotThereIsOneLine) {
  if (cuda::device_count() > 0) GTEST_SKIP() << "there is a GPU";
  EXPECT_ERROR(Tensor::zeros({2, 2}, DType::f32, Device::parse("cuda")), "cuda: ");
  EXPECT_ERROR(Tensor::ones({2, 2}).to(Device::parse("cuda:1")), "cuda: ");
  EXPECT_ERROR(memory_statistics(Device::cuda()), "cuda: ");
}

}  // namespace
}  // namespace switchyard
