// The caching allocator. Memory comes from the driver in segments that are kept; a request takes the smallest free
// block that fits, split if the rest is worth keeping, and a freed block merges with free neighbours. Since all work of
// a device runs on one stream, a block may be handed out again the moment the host lets go of it.
//
// Blocks given out while a graph is being recorded come from a pool of their own: the graph will write to those
// addresses at every replay, so other work may not have them. (A second graph may: graphs never run at the same time,
// and what is to outlive a replay is held by a tensor.) Blocks that were in use meanwhile may be read by the graph:
// freed later, they are set aside until the last graph is gone.

#include "cuda/allocator.h"

#include <algorithm>
#include <array>
#include <iomanip>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/kernels/device.h"
#include "cuda/check.h"
#include "cuda/context.h"

namespace switchyard::cuda {
namespace {

constexpr std::size_t kGranule = 512;     // every block starts and ends on a multiple
constexpr std::size_t kSmall = 1u << 20;  // requests up to this share segments of kSmallSegment
constexpr std::size_t kSmallSegment = 2u << 20;
constexpr std::size_t kLargeGranule = 2u << 20;    // larger segments are whole multiples of this
constexpr std::size_t kMediumSegment = 64u << 20;  // requests below this share segments of this size

struct Block {
  char* data;
  std::size_t bytes;
  bool free;
  bool small;
  int pool;
  Block* previous = nullptr;  // neighbours in the segment
  Block* next = nullptr;
  bool recorded = false;  // a graph may read it
};

struct BySize {
  bool operator()(const Block* a, const Block* b) const {
    return a->bytes != b->bytes ? a->bytes < b->bytes : a->data < b->data;
  }
};

std::size_t round_up(std::size_t bytes, std::size_t granule) { return (bytes + granule - 1) / granule * granule; }

std::string mebibytes(std::size_t bytes) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(1) << static_cast<double>(bytes) / (1 << 20) << " MiB";
  return text.str();
}

class Arena {
 public:
  explicit Arena(Device device) : device_(device) {}

  void* allocate(std::size_t requested) {
    const std::lock_guard lock(mutex_);
    const bool small = requested <= kSmall;
    const std::size_t bytes = round_up(requested, kGranule);
    Block* block = take(bytes, small);
    if (block == nullptr) block = grow(bytes, small);
    split(*block, bytes);
    block->free = false;
    used_.emplace(block->data, block);
    statistics_.current_bytes += block->bytes;
    recorded_peak_ = std::max(recorded_peak_, statistics_.current_bytes);
    statistics_.peak_bytes = std::max(statistics_.peak_bytes, statistics_.current_bytes);
    ++statistics_.allocations;
    return block->data;
  }

  void deallocate(void* data) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(data);
    if (found == used_.end()) return;
    Block* block = found->second;
    used_.erase(found);
    statistics_.current_bytes -= block->bytes;
    if (block->recorded) set_aside_.push_back(block);
    else give_back(block);
  }

  int begin_recording() {
    const std::lock_guard lock(mutex_);
    check(pool_ == kOrdinary, "graph: a graph is already being recorded on ", device_);
    cudaStreamSynchronize(context(device_).stream);  // so that no segment given back to the driver below is in use
    pool_ = ++last_pool_;
    ++graphs_;
    recorded_peak_ = statistics_.current_bytes;
    for (auto& [data, block] : used_) block->recorded = block->pool == kOrdinary;
    for (const bool small : {false, true})
      std::erase_if(free_list(kOrdinary, small), [&](Block* block) {
        if (block->previous || block->next) return false;
        block->pool = pool_;
        free_list(*block).insert(block);
        return true;
      });
    return pool_;
  }

  std::size_t end_recording() {
    const std::lock_guard lock(mutex_);
    pool_ = kOrdinary;
    return recorded_peak_ - statistics_.current_bytes;
  }

  void forget_recording(int pool) {
    const std::lock_guard lock(mutex_);
    pool_ = kOrdinary;
    for (auto& [block, owner] : blocks_)
      if (block->pool == pool) block->pool = kOrdinary;
    for (const bool small : {false, true}) free_list(kOrdinary, small).merge(free_list(pool, small));
    free_.erase(pool);
    if (--graphs_ > 0) return;
    for (auto& [data, block] : used_) block->recorded = false;
    for (Block* block : std::exchange(set_aside_, {})) {
      block->recorded = false;
      give_back(block);
    }
  }

  void count_replay(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    statistics_.peak_bytes = std::max(statistics_.peak_bytes, statistics_.current_bytes + bytes);
  }

  MemoryStatistics statistics() {
    const std::lock_guard lock(mutex_);
    return statistics_;
  }
  void reset_peak() {
    const std::lock_guard lock(mutex_);
    statistics_.peak_bytes = statistics_.current_bytes;
  }

 private:
  static constexpr int kOrdinary = 0;  // the pool of all work that is not recorded
  using FreeList = std::set<Block*, BySize>;

  FreeList& free_list(int pool, bool small) { return free_[pool][small ? 1 : 0]; }
  FreeList& free_list(const Block& block) { return free_list(block.pool, block.small); }

  /// Makes a block free and one with its free neighbours.
  void give_back(Block* block) {
    block->free = true;
    if (Block* next = block->next; next && next->free) {
      free_list(*next).erase(next);
      absorb(*block, next);
    }
    if (Block* previous = block->previous; previous && previous->free) {
      free_list(*previous).erase(previous);
      absorb(*previous, block);
      block = previous;
    }
    free_list(*block).insert(block);
  }

  Block* take(std::size_t bytes, bool small) {
    FreeList& list = free_list(pool_, small);
    Block key{nullptr, bytes, true, small, pool_};
    const auto found = list.lower_bound(&key);
    if (found == list.end()) return nullptr;
    Block* block = *found;
    list.erase(found);
    return block;
  }

  Block* grow(std::size_t bytes, bool small) {
    const std::size_t segment =
        small ? kSmallSegment : (bytes < kMediumSegment / 2 ? kMediumSegment : round_up(bytes, kLargeGranule));
    void* data = nullptr;
    if (cudaMalloc(&data, segment) != cudaSuccess) {
      cudaGetLastError();
      release_free_segments();
      if (cudaMalloc(&data, segment) != cudaSuccess) {
        cudaGetLastError();
        fail(out_of_memory(bytes));
      }
    }
    statistics_.reserved_bytes += segment;
    return keep({static_cast<char*>(data), segment, true, small, pool_});
  }

  Block* keep(Block block) {
    auto owned = std::make_unique<Block>(block);
    Block* raw = owned.get();
    blocks_.emplace(raw, std::move(owned));
    return raw;
  }

  void split(Block& block, std::size_t bytes) {
    const std::size_t rest = block.bytes - bytes;
    if (rest < (block.small ? kGranule : kSmall)) return;
    Block* tail = keep({block.data + bytes, rest, true, block.small, block.pool, &block, block.next});
    if (block.next) block.next->previous = tail;
    block.next = tail;
    block.bytes = bytes;
    free_list(*tail).insert(tail);
  }

  /// Makes `left` and its right neighbour one block. Neither may be in a free list.
  void absorb(Block& left, Block* right) {
    left.bytes += right->bytes;
    left.next = right->next;
    if (right->next) right->next->previous = &left;
    blocks_.erase(right);
  }

  /// Gives whole free segments back to the driver; those of graphs stay.
  void release_free_segments() {
    if (pool_ == kOrdinary) cudaStreamSynchronize(context(device_).stream);
    for (const bool small : {false, true}) {
      FreeList& list = free_list(kOrdinary, small);
      for (auto it = list.begin(); it != list.end();) {
        Block* block = *it;
        if (block->previous || block->next) {
          ++it;
          continue;
        }
        cudaFree(block->data);
        statistics_.reserved_bytes -= block->bytes;
        it = list.erase(it);
        blocks_.erase(block);
      }
    }
  }

  std::string out_of_memory(std::size_t bytes) {
    std::size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    std::map<std::size_t, std::size_t, std::greater<>> by_size;
    for (const auto& [data, block] : used_) ++by_size[block->bytes];
    std::ostringstream text;
    text << "allocate: out of memory on " << device_ << ": " << mebibytes(bytes) << " wanted, " << mebibytes(free_bytes)
         << " of " << mebibytes(total) << " free, " << mebibytes(statistics_.current_bytes) << " in tensors, "
         << mebibytes(statistics_.reserved_bytes - statistics_.current_bytes) << " cached; largest tensors:";
    int shown = 0;
    for (const auto& [size, count] : by_size) {
      if (++shown > 5) break;
      text << (shown > 1 ? "," : "") << ' ' << count << " x " << mebibytes(size);
    }
    text << "; a smaller batch, training.recompute or bf16 would help";
    return text.str();
  }

  Device device_;
  std::mutex mutex_;
  std::map<int, std::array<FreeList, 2>> free_;  // by pool; large, small
  std::unordered_map<void*, Block*> used_;
  std::unordered_map<Block*, std::unique_ptr<Block>> blocks_;
  MemoryStatistics statistics_;
  int pool_ = kOrdinary;  // that requests are served from: while recording, the graph's
  int last_pool_ = kOrdinary;
  int graphs_ = 0;                 // alive, or being recorded
  std::size_t recorded_peak_ = 0;  // most bytes in use since the last recording began
  std::vector<Block*> set_aside_;  // freed, but graphs may read them
};

Arena& arena(Device device) {
  static std::mutex mutex;
  static auto& arenas = *new std::map<int, std::unique_ptr<Arena>>;  // outlives every tensor in static storage
  const std::lock_guard lock(mutex);
  auto& slot = arenas[device.index];
  if (!slot) slot = std::make_unique<Arena>(device);
  return *slot;
}

}  // namespace

void* allocate(std::size_t bytes, Device device) {
  context(device);
  return arena(device).allocate(bytes);
}

void deallocate(void* data, std::size_t, Device device) noexcept { arena(device).deallocate(data); }

MemoryStatistics memory_statistics(Device device) {
  context(device);  // throws where there is no such GPU
  return arena(device).statistics();
}

void reset_peak_memory(Device device) {
  context(device);
  arena(device).reset_peak();
}

int begin_recording(Device device) { return arena(device).begin_recording(); }
std::size_t end_recording(Device device) { return arena(device).end_recording(); }
void forget_recording(Device device, int pool) noexcept { arena(device).forget_recording(pool); }
void count_replay(Device device, std::size_t bytes) { arena(device).count_replay(bytes); }

}  // namespace switchyard::cuda
