// Memory that is kept and given out again, over a source that counts instead of a GPU's driver.

#include "core/arena.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "core/name_scope.h"
#include "tests/support/close.h"

namespace switchyard {
namespace {

using testing::error_of;

constexpr std::size_t kKiB = 1u << 10, kMiB = 1u << 20;

/// Addresses that nobody may read: segments far apart, of `total` bytes together.
class Counted : public SegmentSource {
 public:
  explicit Counted(std::size_t total) : total_(total) {}

  void* obtain(std::size_t bytes) override {
    if (in_use() + bytes > total_) return nullptr;
    next_ += std::size_t{1} << 32;
    segments_[next_] = bytes;
    return reinterpret_cast<void*>(next_);
  }
  void give_back(void* segment) override { EXPECT_EQ(segments_.erase(reinterpret_cast<std::uintptr_t>(segment)), 1u); }
  void wait() override { ++waits; }
  Room room() override { return {total_ - in_use(), total_}; }

  std::size_t in_use() const {
    std::size_t sum = 0;
    for (const auto& [begin, bytes] : segments_) sum += bytes;
    return sum;
  }
  /// Whether the bytes lie in one segment.
  bool holds(std::uintptr_t begin, std::size_t bytes) const {
    const auto after = segments_.upper_bound(begin);
    if (after == segments_.begin()) return false;
    const auto& [segment, size] = *std::prev(after);
    return begin + bytes <= segment + size;
  }

  int waits = 0;

 private:
  std::size_t total_;
  std::uintptr_t next_ = 0;
  std::map<std::uintptr_t, std::size_t> segments_;
};

class ArenaTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kTotal = 256 * kMiB;

  std::size_t reserved() { return arena_.statistics().reserved_bytes; }
  std::size_t current() { return arena_.statistics().current_bytes; }

  Counted* source_ = new Counted(kTotal);  // the arena's
  Arena arena_{Device::cuda(), std::unique_ptr<SegmentSource>(source_)};
};

TEST_F(ArenaTest, BlocksSplitAndMergeAgain) {
  void* a = arena_.allocate(600 * kKiB);
  void* b = arena_.allocate(600 * kKiB);
  void* c = arena_.allocate(600 * kKiB);
  EXPECT_EQ(reserved(), 2 * kMiB) << "all three in one segment";
  arena_.deallocate(a);
  arena_.deallocate(c);
  void* d = arena_.allocate(kMiB);
  EXPECT_EQ(reserved(), 4 * kMiB) << "the middle one is in the way";
  arena_.deallocate(b);
  arena_.deallocate(d);
  EXPECT_EQ(current(), 0u);
  for (int i = 0; i < 4; ++i) arena_.allocate(kMiB);
  EXPECT_EQ(reserved(), 4 * kMiB) << "both segments are whole again";
  EXPECT_EQ(current(), 4 * kMiB);
}

TEST_F(ArenaTest, TheSmallestBlockThatFitsIsTaken) {
  void* large = arena_.allocate(40 * kMiB);
  void* small = arena_.allocate(34 * kMiB);
  arena_.deallocate(large);
  arena_.deallocate(small);
  EXPECT_EQ(arena_.allocate(34 * kMiB), small);
  EXPECT_EQ(arena_.allocate(36 * kMiB), large);
}

TEST_F(ArenaTest, RandomRequestsNeverOverlapAndAreCounted) {
  std::mt19937 random(3);
  std::map<std::uintptr_t, std::size_t> live;  // begin, bytes
  std::size_t peak = 0;
  for (int i = 0; i < 20000; ++i) {
    if (live.size() < 60 && random() % 2) {
      const std::size_t bytes = 1 + random() % (random() % 4 ? 100 * kKiB : 3 * kMiB);
      const auto begin = reinterpret_cast<std::uintptr_t>(arena_.allocate(bytes));
      const auto after = live.lower_bound(begin);
      EXPECT_EQ(begin % 512, 0u);
      EXPECT_TRUE(source_->holds(begin, bytes));
      ASSERT_TRUE(after == live.end() || begin + bytes <= after->first);
      ASSERT_TRUE(after == live.begin() || std::prev(after)->first + std::prev(after)->second <= begin);
      live[begin] = bytes;
    } else if (!live.empty()) {
      const auto it = std::next(live.begin(), static_cast<std::ptrdiff_t>(random() % live.size()));
      arena_.deallocate(reinterpret_cast<void*>(it->first));
      live.erase(it);
    }
    peak = std::max(peak, current());
    ASSERT_EQ(reserved(), source_->in_use());
  }
  std::size_t held = 0;
  for (const auto& [begin, bytes] : live) held += bytes;
  EXPECT_GE(current(), held);
  EXPECT_LT(current(), held + live.size() * kMiB) << "a block may keep a rest that is not worth splitting off";
  EXPECT_EQ(arena_.statistics().peak_bytes, peak);
  for (const auto& [begin, bytes] : live) arena_.deallocate(reinterpret_cast<void*>(begin));
  EXPECT_EQ(current(), 0u);
  arena_.allocate(kTotal);  // succeeds only if every segment is whole, and so can be given back
  EXPECT_EQ(reserved(), kTotal);
  EXPECT_GT(source_->waits, 0) << "work that is queued may use what is given back";
}

TEST_F(ArenaTest, MemoryOfAGraphServesNobodyElse) {
  void* read = arena_.allocate(3 * kMiB);  // by the graph
  arena_.deallocate(arena_.allocate(40 * kMiB));
  const std::size_t before = current();
  const int pool = arena_.begin_recording();
  void* inner = arena_.allocate(40 * kMiB);
  arena_.deallocate(inner);
  EXPECT_EQ(arena_.allocate(40 * kMiB), inner) << "reused while recording";
  arena_.deallocate(inner);
  EXPECT_EQ(arena_.end_recording(), 40 * kMiB);
  EXPECT_EQ(reserved(), 104 * kMiB) << "the free segment moved to the graph's pool";

  arena_.deallocate(read);
  EXPECT_EQ(current(), before - 3 * kMiB);
  for (int i = 0; i < 2; ++i) {
    EXPECT_NE(arena_.allocate(40 * kMiB), inner);
    EXPECT_NE(arena_.allocate(3 * kMiB), read);
  }
  arena_.reset_peak();
  arena_.count_replay(40 * kMiB);
  EXPECT_EQ(arena_.statistics().peak_bytes, current() + 40 * kMiB);

  arena_.forget_recording(pool);
  EXPECT_EQ(arena_.allocate(40 * kMiB), inner) << "with the graph gone, its memory serves anybody";
  EXPECT_EQ(arena_.allocate(3 * kMiB), read);
}

// Segments: 64 MiB for the weights and layer 9, 64 MiB for what is freed and layer 10, 40 MiB for layer 11.
TEST_F(ArenaTest, RunningOutTellsWhoHoldsTheMemory) {
  arena_.allocate(20 * kMiB);
  void* freed = nullptr;
  for (int layer = 9; layer < 12; ++layer) {
    const NameScope scope("layers." + std::to_string(layer));
    const NameScope inside("attention");
    arena_.allocate(40 * kMiB);
    if (layer == 9) freed = arena_.allocate(8 * kMiB);
  }
  arena_.deallocate(freed);
  const NameScope scope("output");
  EXPECT_EQ(error_of([&] { arena_.allocate(100 * kMiB); }),
            "allocate: out of memory on cuda:0: 100.0 MiB wanted in output, 88.0 of 256.0 MiB free; what holds the "
            "memory:\n"
            "  part of the model                                 tensors         MiB\n"
            "  layers.*.attention                                      3       120.0\n"
            "  outside of them: weights, optimizer                     1        20.0\n"
            "  given out to nobody, in too small pieces                         28.0\n"
            "A smaller training.batch (with more training.gradient_accumulation), training.recompute or training.dtype "
            "bf16 would help.");
  arena_.allocate(88 * kMiB);  // the arena goes on
  EXPECT_EQ(reserved(), kTotal);
}

}  // namespace
}  // namespace switchyard
