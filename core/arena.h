#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/device.h"
#include "core/storage.h"

namespace switchyard {

/// Where an Arena gets its memory: a GPU's driver.
class SegmentSource {
 public:
  struct Room {
    std::size_t free = 0, total = 0;  ///< bytes
  };

  virtual ~SegmentSource() = default;
  /// Memory of that size, or nullptr where none is left.
  virtual void* obtain(std::size_t bytes) = 0;
  virtual void give_back(void* segment) = 0;
  /// Waits until no work that is queued on the device uses its memory.
  virtual void wait() = 0;
  virtual Room room() = 0;
};

/// Memory of one device that is kept and given out again. It comes from the source in segments; a request takes the
/// smallest free block that fits, split if the rest is worth keeping, and a freed block merges with free neighbours.
/// Since all work of a device runs on one stream, a block may be handed out again the moment the host lets go of it.
///
/// Blocks given out while a graph is being recorded come from a pool of their own: the graph will write to those
/// addresses at every replay, so other work may not have them. (A second graph may: graphs never run at the same time,
/// and what is to outlive a replay is held by a tensor.) Blocks that were in use meanwhile may be read by the graph:
/// freed later, they are set aside until the last graph is gone.
class Arena {
 public:
  Arena(Device device, std::unique_ptr<SegmentSource> source);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// At least `bytes` bytes, on a boundary of 512. Throws Error when memory is short; its message ends with a table of
  /// which parts of the model (NameScope) hold how much, and what would help.
  void* allocate(std::size_t bytes);
  void deallocate(void* data);

  /// From here to end_recording, memory comes from a new pool, whose number is returned. Free segments join the pool,
  /// so that recording seldom asks the source for memory.
  int begin_recording();
  /// Ends it. Returns how much more memory the recorded work had in use at once than it leaves in use.
  std::size_t end_recording();
  /// Undoes begin_recording, when the graph is gone or did not come about: its pool becomes ordinary memory again, and
  /// with the last one, so does what was set aside.
  void forget_recording(int pool);
  /// Tells the statistics that a graph needing `bytes` runs.
  void count_replay(std::size_t bytes);

  MemoryStatistics statistics();
  void reset_peak();

 private:
  /// Memory in use that was asked for in one NameScope.
  struct Holding {
    std::size_t blocks = 0, bytes = 0;
  };
  struct Block {
    char* data;
    std::size_t bytes;
    bool free;
    bool small;
    int pool;
    Block* previous = nullptr;  // neighbours in the segment
    Block* next = nullptr;
    bool recorded = false;  // a graph may read it
    Holding* holding = nullptr;
  };
  struct BySize {
    bool operator()(const Block* a, const Block* b) const;
  };
  using FreeList = std::set<Block*, BySize>;

  static constexpr int kOrdinary = 0;  // the pool of all work that is not recorded

  FreeList& free_list(int pool, bool small) { return free_[pool][small ? 1 : 0]; }
  FreeList& free_list(const Block& block) { return free_list(block.pool, block.small); }
  Block* take(std::size_t bytes, bool small);
  Block* grow(std::size_t bytes, bool small);
  Block* keep(const Block& block);
  void split(Block& block, std::size_t bytes);
  void absorb(Block& left, Block* right);
  void give_back(Block* block);
  void release_free_segments();
  std::string out_of_memory(std::size_t bytes);
  std::string table_of_holdings() const;

  Device device_;
  std::unique_ptr<SegmentSource> source_;
  std::mutex mutex_;
  std::map<int, std::array<FreeList, 2>> free_;  // by pool; large, small
  std::unordered_map<void*, Block*> used_;
  std::unordered_map<Block*, std::unique_ptr<Block>> blocks_;
  std::unordered_map<std::string, Holding> holdings_;  // by NameScope
  MemoryStatistics statistics_;
  int pool_ = kOrdinary;  // that requests are served from: while recording, the graph's
  int last_pool_ = kOrdinary;
  int graphs_ = 0;                 // alive, or being recorded
  std::size_t recorded_peak_ = 0;  // most bytes in use since the last recording began
  std::vector<Block*> set_aside_;  // freed, but graphs may read them
};

}  // namespace switchyard
