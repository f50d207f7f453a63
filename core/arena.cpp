#include "core/arena.h"

#include <algorithm>
#include <cctype>
#include <functional>
#include <iomanip>
#include <sstream>
#include <utility>

#include "core/error.h"
#include "core/name_scope.h"

namespace switchyard {
namespace {

constexpr std::size_t kGranule = 512;     // every block starts and ends on a multiple
constexpr std::size_t kSmall = 1u << 20;  // requests up to this share segments of kSmallSegment
constexpr std::size_t kSmallSegment = 2u << 20;
constexpr std::size_t kLargeGranule = 2u << 20;    // larger segments are whole multiples of this
constexpr std::size_t kMediumSegment = 64u << 20;  // requests below half of this share segments of this size

std::size_t round_up(std::size_t bytes, std::size_t granule) { return (bytes + granule - 1) / granule * granule; }

double mebibytes(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

/// "layers.12.attention" -> "layers.*.attention", so that alike layers share a row of the table.
std::string without_numbers(const std::string& scope) {
  std::string name;
  for (const char c : scope) {
    const bool digit = std::isdigit(static_cast<unsigned char>(c)) != 0;
    if (!digit) name += c;
    else if (name.empty() || name.back() != '*') name += '*';
  }
  return name;
}

}  // namespace

bool Arena::BySize::operator()(const Block* a, const Block* b) const {
  return a->bytes != b->bytes ? a->bytes < b->bytes : std::less<>{}(a->data, b->data);
}

Arena::Arena(Device device, std::unique_ptr<SegmentSource> source) : device_(device), source_(std::move(source)) {}
Arena::~Arena() = default;

void* Arena::allocate(std::size_t requested) {
  const std::lock_guard lock(mutex_);
  const bool small = requested <= kSmall;
  const std::size_t bytes = round_up(requested, kGranule);
  Block* block = take(bytes, small);
  if (block == nullptr) block = grow(bytes, small);
  split(*block, bytes);
  block->free = false;
  block->holding = &holdings_[NameScope::current()];
  ++block->holding->blocks;
  block->holding->bytes += block->bytes;
  used_.emplace(block->data, block);
  statistics_.current_bytes += block->bytes;
  recorded_peak_ = std::max(recorded_peak_, statistics_.current_bytes);
  statistics_.peak_bytes = std::max(statistics_.peak_bytes, statistics_.current_bytes);
  ++statistics_.allocations;
  return block->data;
}

void Arena::deallocate(void* data) {
  const std::lock_guard lock(mutex_);
  const auto found = used_.find(data);
  if (found == used_.end()) return;
  Block* block = found->second;
  used_.erase(found);
  --block->holding->blocks;
  block->holding->bytes -= block->bytes;
  statistics_.current_bytes -= block->bytes;
  if (block->recorded) set_aside_.push_back(block);
  else give_back(block);
}

int Arena::begin_recording() {
  const std::lock_guard lock(mutex_);
  check(pool_ == kOrdinary, "graph: a graph is already being recorded on ", device_);
  source_->wait();  // so that no segment that recording gives back to the source is in use
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

std::size_t Arena::end_recording() {
  const std::lock_guard lock(mutex_);
  pool_ = kOrdinary;
  return recorded_peak_ - statistics_.current_bytes;
}

void Arena::forget_recording(int pool) {
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

void Arena::count_replay(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  statistics_.peak_bytes = std::max(statistics_.peak_bytes, statistics_.current_bytes + bytes);
}

MemoryStatistics Arena::statistics() {
  const std::lock_guard lock(mutex_);
  return statistics_;
}

void Arena::reset_peak() {
  const std::lock_guard lock(mutex_);
  statistics_.peak_bytes = statistics_.current_bytes;
}

Arena::Block* Arena::take(std::size_t bytes, bool small) {
  FreeList& list = free_list(pool_, small);
  Block key{nullptr, bytes, true, small, pool_};
  const auto found = list.lower_bound(&key);
  if (found == list.end()) return nullptr;
  Block* block = *found;
  list.erase(found);
  return block;
}

Arena::Block* Arena::grow(std::size_t bytes, bool small) {
  const std::size_t segment =
      small ? kSmallSegment : (bytes < kMediumSegment / 2 ? kMediumSegment : round_up(bytes, kLargeGranule));
  void* data = source_->obtain(segment);
  if (data == nullptr) {
    release_free_segments();
    data = source_->obtain(segment);
  }
  if (data == nullptr) throw Error(out_of_memory(bytes));
  statistics_.reserved_bytes += segment;
  return keep({static_cast<char*>(data), segment, true, small, pool_});
}

Arena::Block* Arena::keep(const Block& block) {
  auto owned = std::make_unique<Block>(block);
  Block* raw = owned.get();
  blocks_.emplace(raw, std::move(owned));
  return raw;
}

void Arena::split(Block& block, std::size_t bytes) {
  const std::size_t rest = block.bytes - bytes;
  if (rest < (block.small ? kGranule : kSmall)) return;
  Block* tail = keep({block.data + bytes, rest, true, block.small, block.pool, &block, block.next});
  if (block.next) block.next->previous = tail;
  block.next = tail;
  block.bytes = bytes;
  free_list(*tail).insert(tail);
}

/// Makes `left` and its right neighbour one block. Neither may be in a free list.
void Arena::absorb(Block& left, Block* right) {
  left.bytes += right->bytes;
  left.next = right->next;
  if (right->next) right->next->previous = &left;
  blocks_.erase(right);
}

/// Makes a block free and one with its free neighbours.
void Arena::give_back(Block* block) {
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

/// Gives whole free segments back to the source; those of graphs stay.
void Arena::release_free_segments() {
  if (pool_ == kOrdinary) source_->wait();
  for (const bool small : {false, true}) {
    FreeList& list = free_list(kOrdinary, small);
    for (auto it = list.begin(); it != list.end();) {
      Block* block = *it;
      if (block->previous || block->next) {
        ++it;
        continue;
      }
      source_->give_back(block->data);
      statistics_.reserved_bytes -= block->bytes;
      it = list.erase(it);
      blocks_.erase(block);
    }
  }
}

std::string Arena::out_of_memory(std::size_t bytes) {
  const SegmentSource::Room room = source_->room();
  std::ostringstream text;
  text << std::fixed << std::setprecision(1) << "allocate: out of memory on " << device_ << ": " << mebibytes(bytes)
       << " MiB wanted";
  if (!NameScope::current().empty()) text << " in " << NameScope::current();
  text << ", " << mebibytes(room.free) << " of " << mebibytes(room.total) << " MiB free; what holds the memory:\n"
       << table_of_holdings()
       << "A smaller training.batch (with more training.gradient_accumulation), training.recompute or training.dtype "
          "bf16 would help.";
  return text.str();
}

std::string Arena::table_of_holdings() const {
  std::map<std::string, Holding> merged;
  for (const auto& [scope, held] : holdings_) {
    Holding& row = merged[scope.empty() ? "outside of them: weights, optimizer" : without_numbers(scope)];
    row.blocks += held.blocks;
    row.bytes += held.bytes;
  }
  std::vector<std::pair<std::string, Holding>> rows(merged.begin(), merged.end());
  std::ranges::stable_sort(rows, std::ranges::greater{}, [](const auto& row) { return row.second.bytes; });
  std::ostringstream text;
  text << std::fixed << std::setprecision(1);
  const auto line = [&](const std::string& name, const auto& blocks, const auto& amount) {
    text << "  " << std::left << std::setw(48) << name << std::right << std::setw(9) << blocks << std::setw(12)
         << amount << "\n";
  };
  line("part of the model", "tensors", "MiB");
  for (const auto& [name, held] : rows)
    if (held.blocks > 0) line(name, held.blocks, mebibytes(held.bytes));
  line("given out to nobody, in too small pieces", "",
       mebibytes(statistics_.reserved_bytes - statistics_.current_bytes));
  return text.str();
}

}  // namespace switchyard
