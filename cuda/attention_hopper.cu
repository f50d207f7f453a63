// The host's part of attention on Hopper: what the copy engine reads, and how work is shared out among blocks.

#include "cuda/attention_hopper.cuh"
#include "cuda/tensor_map.h"

namespace switchyard::cuda {
namespace {

/// The copy engine reads rows whose every start is aligned to 16 bytes.
bool has_tile_map(const Heads<Bf16>& x) {
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.token % 8 == 0 && x.batch % 8 == 0 &&
         x.head % 8 == 0 && x.width % 8 == 0;
}

}  // namespace

bool has_hopper_attention(const Problem& p, const Heads<Bf16>& out, Device device) {
  return context(device).hopper && p.position == nullptr && p.scale > 0 && has_tile_map(p.query) &&
         has_tile_map(p.key) && has_tile_map(p.value) && has_tile_map(out);
}

TileMap tile_map(const Heads<Bf16>& x, int batch, int rows, int heads, int box_rows) {
  return {tensor_map(x.data, {x.width, rows, heads, batch}, {x.token, x.head, x.batch}, box_rows)};
}

Schedule schedule_of(const Problem& p, int rows) {
  return {(rows + kBlockRows - 1) / kBlockRows, p.heads, p.batch, p.causal};
}

unsigned blocks_of(const Schedule& schedule, Device device) {
  return static_cast<unsigned>(std::min(schedule.items(), context(device).multiprocessors));
}

}  // namespace switchyard::cuda
