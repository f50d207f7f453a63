#pragma once

// The tiles of the expert products on Hopper, and in which order the blocks make them.

#include <cstdint>

#include "cuda/device/reduce.cuh"

namespace switchyard::cuda::expert_product {

constexpr int kUnitRows = 128;

/// A tile: `count` pairs of one expert from pair `first` on, columns from `column` on. count is 0 after the last tile.
struct Where {
  int expert, first, count, column;
};

/// The tiles of this block: up to `blocks` units of kUnitRows pairs of one expert, `columns` columns. Large experts
/// (in_turn): tiles are numbered by expert, then column, then pair, so that blocks share one expert's weights. Experts
/// small enough to stay in the second-level cache: by place among the expert's tiles, then expert, then column, so that
/// all blocks pass over the tokens at one pace and share their rows. Either way blocks take every gridDim.x-th.
struct Schedule {
  const std::int32_t* offsets;
  int experts, column_tiles;
  bool in_turn;

  /// Where an expert's pairs begin, and how many it has. Called by whole warps, like all that follow.
  struct Pairs {
    int begin = 0, count = 0;
    __device__ int tiles(int rows) const { return (count + rows - 1) / rows; }
  };
  __device__ Pairs pairs_of(int expert) const {
    if (expert >= experts) return {};
    return {offsets[expert], offsets[expert + 1] - offsets[expert]};
  }

  __device__ int total(int rows) const {
    int sum = 0;
    for (int expert = threadIdx.x % 32; expert < experts; expert += 32) sum += pairs_of(expert).tiles(rows);
    return warp_reduce(sum, Add{}) * column_tiles;
  }

  __device__ static Where tile_at(int expert, const Pairs& pairs, int place, int rows, int column) {
    return {expert, pairs.begin + place * rows, min(rows, pairs.count - place * rows), column};
  }

  /// Tile `item` by expert.
  __device__ Where locate_by_expert(int item, int rows, int columns) const {
    for (int first = 0, before = 0;; first += 32) {
      const Pairs pairs = pairs_of(first + static_cast<int>(threadIdx.x % 32));
      const int own = pairs.tiles(rows) * column_tiles, sum = warp_running_sum(own);
      const unsigned reached = __ballot_sync(0xffffffffu, before + sum > item);
      if (reached != 0) {
        const int owner = __ffs(reached) - 1, index = item - before - __shfl_sync(0xffffffffu, sum - own, owner);
        const Pairs its = {__shfl_sync(0xffffffffu, pairs.begin, owner), __shfl_sync(0xffffffffu, pairs.count, owner)};
        return tile_at(first + owner, its, index % its.tiles(rows), rows, index / its.tiles(rows) * columns);
      }
      before += __shfl_sync(0xffffffffu, sum, 31);
    }
  }

  /// How far the search by place has come: tiles before those of a place.
  struct Progress {
    int place = 0, before = 0;
  };
  /// Tile `item` by place; items are asked for in rising order.
  __device__ Where locate_by_place(int item, int rows, int columns, Progress& at) const {
    const int lane = threadIdx.x % 32;
    const unsigned lanes_before = (1u << lane) - 1;
    for (;; ++at.place) {
      int before = at.before;
      for (int first = 0; first < experts; first += 32) {
        const Pairs pairs = pairs_of(first + lane);
        const unsigned longer = __ballot_sync(0xffffffffu, pairs.tiles(rows) > at.place);
        const int own = __popc(longer) * column_tiles;
        if (item < before + own) {
          const int nth = (item - before) / column_tiles, column = (item - before) % column_tiles * columns;
          const bool is_owner = __popc(longer & lanes_before) == nth && longer >> lane & 1;
          const int owner = __ffs(__ballot_sync(0xffffffffu, is_owner)) - 1;
          const Pairs its = {__shfl_sync(0xffffffffu, pairs.begin, owner),
                             __shfl_sync(0xffffffffu, pairs.count, owner)};
          return tile_at(first + owner, its, at.place, rows, column);
        }
        before += own;
      }
      at.before = before;
    }
  }

  /// Calls use(tile) for every tile of this block. Those left over when all blocks have had as many as each other are
  /// cut into their units if there are blocks enough.
  template <class Use>
  __device__ void for_each_tile(int blocks, int columns, Use use) const {
    const int rows = blocks * kUnitRows, all = total(rows), grid = static_cast<int>(gridDim.x);
    const int rest = all % grid, parts = rest * blocks <= grid ? blocks : 1;
    Progress progress;
    for (int turn = blockIdx.x; turn < all - rest + rest * parts; turn += grid) {
      const bool whole = turn < all - rest;
      const int item = whole ? turn : all - rest + (turn - (all - rest)) / parts;
      Where tile = in_turn ? locate_by_expert(item, rows, columns) : locate_by_place(item, rows, columns, progress);
      if (!whole && parts > 1) {
        const int begin = (turn - (all - rest)) % parts * kUnitRows;
        tile.first += begin;
        tile.count = min(kUnitRows, tile.count - begin);
        if (tile.count <= 0) continue;
      }
      use(tile);
    }
  }
};

}  // namespace switchyard::cuda::expert_product
