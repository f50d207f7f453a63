// Flash attention on Hopper, backward. As in attention_bf16_backward.cu two kernels own different rows, queries and
// keys: seven products instead of five, but no sum has two owners. Weights are made again from log_normalizer in the
// registers in which the next product wants them, so nothing of size T x S passes through shared memory.

#include "cuda/attention_hopper.cuh"

namespace switchyard::cuda {
namespace hopper {

constexpr int kStages = 3, kOwnedStages = 2;

struct BackwardTask {
  Problem p;
  TileMap query, key, value, dout;
  const float *log_normalizer, *delta;  // [B, H, T]; delta is dout . out
  Heads<Bf16> dquery, dkey, dvalue;
  Schedule schedule;

  __device__ std::int64_t first_statistic(int b, int h) const {
    return (static_cast<std::int64_t>(b) * p.heads + h) * p.queries;
  }
  /// log_normalizer in powers of two; infinity, which makes every weight 0, where no weight exists.
  __device__ float normalizer_of(int b, int h, int query) const {
    const float value = query < p.queries ? log_normalizer[first_statistic(b, h) + query] : INFINITY;
    return value == -INFINITY ? INFINITY : value * kLog2e;
  }
  __device__ float delta_of(int b, int h, int query) const {
    return query < p.queries ? delta[first_statistic(b, h) + query] : 0.0f;
  }
};

/// Two tiles of rows that a block owns, and the next two; and stages of two tiles that pass by.
template <int kWidth, int kSteps>
struct BackwardMemory {
  Bf16 owned[kOwnedStages][2][kTileElements<kWidth, kBlockRows>];
  Bf16 passing[kStages][2][kTileElements<kWidth, kSteps>];
  float normalizer[kStages][kSteps], delta[kStages][kSteps];  // where queries pass by
  std::uint64_t owned_full[kOwnedStages], owned_empty[kOwnedStages], full[kStages], empty[kStages];

  __device__ void init_barriers() {
    for (int s = 0; s < kOwnedStages; ++s) {
      init_barrier(&owned_full[s], 1);
      init_barrier(&owned_empty[s], kGroups * 4 * kWarpArrivals);
    }
    for (int s = 0; s < kStages; ++s) {
      init_barrier(&full[s], 1 + kWarpArrivals);  // the bytes are announced, the statistics are there
      init_barrier(&empty[s], kGroups * 4 * kWarpArrivals);
    }
    fence_barriers();
  }
};

template <int kWidth, class Memory>
__device__ inline void copy_owned(Memory& memory, const RingPosition<kOwnedStages>& at, const TileMap& first,
                                  const TileMap& second, int b, int h, int tile) {
  std::uint64_t* full = &memory.owned_full[at.stage];
  wait_barrier(&memory.owned_empty[at.stage], at.parity ^ 1);
  arrive_and_expect(full, 2 * kTileBytes<kWidth, kBlockRows>);
  first.copy<kWidth, kBlockRows>(memory.owned[at.stage][0], b, h, tile * kBlockRows, full);
  second.copy<kWidth, kBlockRows>(memory.owned[at.stage][1], b, h, tile * kBlockRows, full);
}

/// Passes over a stage that holds nothing for this warpgroup.
template <class Memory>
__device__ inline void skip_stage(Memory& memory, RingPosition<kStages>& ring, const GroupLane& at) {
  wait_barrier(&memory.full[ring.stage], ring.parity);
  arrive_of_warp(&memory.empty[ring.stage], at.lane);
  ring.advance();
}

// ---- dquery: a block owns queries, keys pass by ----

struct QueryGradient {
  static constexpr int kSteps = 64;
  template <int kWidth>
  using Memory = BackwardMemory<kWidth, kSteps>;

  template <int kWidth>
  static __device__ void copy_tiles(const BackwardTask& task, Memory<kWidth>& memory) {
    if (threadIdx.x != 0) return;
    RingPosition<kOwnedStages> owned;
    RingPosition<kStages> ring;
    task.schedule.for_each([&](int tile, int h, int b) {
      copy_owned<kWidth>(memory, owned, task.query, task.dout, b, h, tile);
      owned.advance();
      const int end = task.p.key_end(min(task.p.queries, (tile + 1) * kBlockRows) - 1);
      for (int first_key = 0; first_key < end; first_key += kSteps, ring.advance()) {
        std::uint64_t* full = &memory.full[ring.stage];
        wait_barrier(&memory.empty[ring.stage], ring.parity ^ 1);
        arrive_and_expect(full, 2 * kTileBytes<kWidth, kSteps>);
        task.key.copy<kWidth, kSteps>(memory.passing[ring.stage][0], b, h, first_key, full);
        task.value.copy<kWidth, kSteps>(memory.passing[ring.stage][1], b, h, first_key, full);
        arrive(full, kWarpArrivals);
      }
    });
  }

  template <int kWidth>
  static __device__ void multiply(const BackwardTask& task, Memory<kWidth>& memory) {
    const Problem& p = task.p;
    const GroupLane at;
    const float scale = p.scale * kLog2e;
    RingPosition<kOwnedStages> owned;
    RingPosition<kStages> ring, last;
    task.schedule.for_each([&](int tile, int h, int b) {
      const int first_query = tile * kBlockRows + at.group * kGroupRows;
      const int tile_end = p.key_end(min(p.queries, (tile + 1) * kBlockRows) - 1);
      const int end = p.key_end(min(p.queries, first_query + kGroupRows) - 1);
      float sums[kWidth / 2] = {}, weights[kSteps / 2], dweights[kSteps / 2], normalizer[2], delta[2];
      std::uint32_t packed[kSteps / 16][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        normalizer[half] = task.normalizer_of(b, h, first_query + at.row(half));
        delta[half] = task.delta_of(b, h, first_query + at.row(half));
      }
      const Bf16* query_rows = memory.owned[owned.stage][0] + at.group * kGroupRows * kLineValues;
      const Bf16* dout_rows = memory.owned[owned.stage][1] + at.group * kGroupRows * kLineValues;
      wait_barrier(&memory.owned_full[owned.stage], owned.parity);

      const auto start_weights = [&] {
        wait_barrier(&memory.full[ring.stage], ring.parity);
        pin(weights);
        wgmma_fence();
        start_logits<kWidth, kBlockRows, kSteps>(weights, query_rows, memory.passing[ring.stage][0]);
        wgmma_commit();
      };
      pin(sums);
      start_weights();
      for (int first_key = 0;; first_key += kSteps) {
        const int stage = ring.stage;
        pin(dweights);
        wgmma_fence();
        start_logits<kWidth, kBlockRows, kSteps>(dweights, dout_rows, memory.passing[stage][1]);
        wgmma_commit();
        wgmma_wait<1>();
        pin(weights);
        pin(sums);
        if (first_key > 0) arrive_of_warp(&memory.empty[last.stage], at.lane);
        hide_keys<kSteps>(p, b, first_query, first_key, at, weights);
#pragma unroll
        for (int n = 0; n < kSteps / 2; ++n) weights[n] = exp2_of(weights[n] * scale - normalizer[n / 2 % 2]);
        wgmma_wait<0>();
        pin(dweights);
        if (p.dropout > 0) drop(kept_bits<kSteps / 8, false>(p, b, h, first_query, first_key, at), p.dropout, dweights);
#pragma unroll
        for (int n = 0; n < kSteps / 2; ++n) dweights[n] = weights[n] * (dweights[n] - delta[n / 2 % 2]);
        pack_weights<kSteps>(dweights, packed);
        pin(sums);
        wgmma_fence();
        start_weighted_rows<kWidth, kSteps>(sums, packed, memory.passing[stage][0]);
        wgmma_commit();
        last = ring;
        ring.advance();
        if (first_key + kSteps >= end) break;
        start_weights();
      }
      arrive_of_warp(&memory.owned_empty[owned.stage], at.lane);
      owned.advance();
      wgmma_wait<0>();
      pin(sums);
      arrive_of_warp(&memory.empty[last.stage], at.lane);
      for (int steps = (end + kSteps - 1) / kSteps; steps < (tile_end + kSteps - 1) / kSteps; ++steps)
        skip_stage(memory, ring, at);
      const float factor[2] = {p.scale, p.scale};
      store_rows<kWidth>(sums, factor, task.dquery, b, h, first_query, p.queries, at);
    });
  }
};

// ---- dkey and dvalue: a block owns keys, queries pass by; tiles of logits are transposed ----

struct KeyValueGradient {
  static constexpr int kSteps = 64;
  template <int kWidth>
  using Memory = BackwardMemory<kWidth, kSteps>;

  /// The first query of those that see keys from `first_key` on, rounded down to a step. Where none does it is the
  /// last: every tile has a step, and what it does not see gets weight 0.
  static __device__ int first_query_of(const Problem& p, int first_key) {
    if (!p.causal) return 0;
    const std::int64_t first = max(std::int64_t{0}, first_key - p.query_offset);
    return static_cast<int>(min(first, static_cast<std::int64_t>(p.queries - 1))) / kSteps * kSteps;
  }

  template <int kWidth>
  static __device__ void copy_tiles(const BackwardTask& task, Memory<kWidth>& memory) {
    if (threadIdx.x >= 32) return;
    RingPosition<kOwnedStages> owned;
    RingPosition<kStages> ring;
    task.schedule.for_each([&](int tile, int h, int b) {
      if (threadIdx.x == 0) copy_owned<kWidth>(memory, owned, task.key, task.value, b, h, tile);
      owned.advance();
      for (int query = first_query_of(task.p, tile * kBlockRows); query < task.p.queries;
           query += kSteps, ring.advance()) {
        const int stage = ring.stage;
        std::uint64_t* full = &memory.full[stage];
        wait_barrier(&memory.empty[stage], ring.parity ^ 1);
        if (threadIdx.x == 0) {
          arrive_and_expect(full, 2 * kTileBytes<kWidth, kSteps>);
          task.query.copy<kWidth, kSteps>(memory.passing[stage][0], b, h, query, full);
          task.dout.copy<kWidth, kSteps>(memory.passing[stage][1], b, h, query, full);
        }
        for (int i = threadIdx.x; i < kSteps; i += 32) {
          memory.normalizer[stage][i] = task.normalizer_of(b, h, query + i);
          memory.delta[stage][i] = task.delta_of(b, h, query + i);
        }
        __syncwarp();
        arrive_of_warp(full, threadIdx.x);
      }
    });
  }

  /// hide_keys with keys as rows and queries as columns.
  static __device__ void hide_queries(const Problem& p, int b, int first_key, int first_query, const GroupLane& at,
                                      float (&logits)[kSteps / 2]) {
    if (p.causal && first_key + kGroupRows > p.key_end(first_query)) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t first_visible = first_key + at.row(half) - p.query_offset - first_query - at.pair * 2;
#pragma unroll
        for (int n = 0; n < kSteps / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (n * 8 + i < first_visible) logits[n * 4 + half * 2 + i] = -INFINITY;
      }
    }
    if (p.mask == nullptr && p.key_padding == nullptr) return;
    const std::uint64_t visible = bits_of<kSteps / 8>(
        at, [&](int row, int column) { return p.visible(b, first_query + column, first_key + row); });
#pragma unroll
    for (int n = 0; n < kSteps / 2; ++n)
      if ((visible >> n & 1) == 0) logits[n] = -INFINITY;
  }

  using Packed = std::uint32_t[kSteps / 16][4];

  /// Makes weights from logits, rounded: beside both sums there is no room to keep them as floats. `dropped` are those
  /// that met the values.
  static __device__ void weigh(const Problem& p, const float* normalizer, std::uint64_t kept, const GroupLane& at,
                               float (&weights)[kSteps / 2], Packed& packed, Packed& dropped) {
    const float scale = p.scale * kLog2e;
#pragma unroll
    for (int n = 0; n < kSteps / 2; ++n) weights[n] = exp2_of(weights[n] * scale - normalizer[at.column(n / 4, n % 2)]);
    pack_weights<kSteps>(weights, packed);
    if (p.dropout > 0) drop(kept, p.dropout, weights);
    pack_weights<kSteps>(weights, dropped);
  }

  /// Replaces weights by the derivatives for the logits; `dweights` are those for the dropped weights.
  static __device__ void differentiate(const Problem& p, const float* delta, std::uint64_t kept, const GroupLane& at,
                                       float (&dweights)[kSteps / 2], Packed& packed) {
    if (p.dropout > 0) drop(kept, p.dropout, dweights);
#pragma unroll
    for (int n = 0; n < kSteps / 2; ++n)
      dweights[n] = unpack_weight<kSteps>(packed, n) * (dweights[n] - delta[at.column(n / 4, n % 2)]);
    pack_weights<kSteps>(dweights, packed);
  }

  template <int kWidth>
  static __device__ void multiply(const BackwardTask& task, Memory<kWidth>& memory) {
    const Problem& p = task.p;
    const GroupLane at;
    RingPosition<kOwnedStages> owned;
    RingPosition<kStages> ring, last;
    task.schedule.for_each([&](int tile, int h, int b) {
      const int first_key = tile * kBlockRows + at.group * kGroupRows, begin = first_query_of(p, first_key);
      float key_sums[kWidth / 2] = {}, value_sums[kWidth / 2] = {}, weights[kSteps / 2], dweights[kSteps / 2];
      Packed packed, dropped;
      const Bf16* key_rows = memory.owned[owned.stage][0] + at.group * kGroupRows * kLineValues;
      const Bf16* value_rows = memory.owned[owned.stage][1] + at.group * kGroupRows * kLineValues;
      wait_barrier(&memory.owned_full[owned.stage], owned.parity);

      const auto start_weights = [&] {
        wait_barrier(&memory.full[ring.stage], ring.parity);
        pin(weights);
        wgmma_fence();
        start_logits<kWidth, kBlockRows, kSteps>(weights, key_rows, memory.passing[ring.stage][0]);
        wgmma_commit();
      };
      for (int query = first_query_of(p, tile * kBlockRows); query < begin; query += kSteps)
        skip_stage(memory, ring, at);
      pin(key_sums);
      pin(value_sums);
      start_weights();
      for (int first_query = begin;; first_query += kSteps) {
        const int stage = ring.stage;
        pin(dweights);
        wgmma_fence();
        start_logits<kWidth, kBlockRows, kSteps>(dweights, value_rows, memory.passing[stage][1]);
        wgmma_commit();
        wgmma_wait<1>();
        pin(weights);
        pin(key_sums);
        if (first_query > begin) arrive_of_warp(&memory.empty[last.stage], at.lane);
        hide_queries(p, b, first_key, first_query, at, weights);
        std::uint64_t kept = 0;
        if (p.dropout > 0) kept = kept_bits<kSteps / 8, true>(p, b, h, first_query, first_key, at);
        weigh(p, memory.normalizer[stage], kept, at, weights, packed, dropped);
        pin(value_sums);
        wgmma_fence();
        start_weighted_rows<kWidth, kSteps>(value_sums, dropped, memory.passing[stage][1]);
        wgmma_commit();
        wgmma_wait<1>();
        pin(dweights);
        differentiate(p, memory.delta[stage], kept, at, dweights, packed);
        __syncwarp();  // one lane releases the stage for all, which have read its statistics
        pin(key_sums);
        wgmma_fence();
        start_weighted_rows<kWidth, kSteps>(key_sums, packed, memory.passing[stage][0]);
        wgmma_commit();
        wgmma_wait<1>();  // the sums of values are done, their weights' registers free
        pin(value_sums);
        last = ring;
        ring.advance();
        if (first_query + kSteps >= p.queries) break;
        start_weights();
      }
      arrive_of_warp(&memory.owned_empty[owned.stage], at.lane);
      owned.advance();
      wgmma_wait<0>();
      pin(key_sums);
      pin(value_sums);
      arrive_of_warp(&memory.empty[last.stage], at.lane);
      const float scales[2] = {p.scale, p.scale}, ones[2] = {1, 1};
      store_rows<kWidth>(key_sums, scales, task.dkey, b, h, first_key, p.keys, at);
      store_rows<kWidth>(value_sums, ones, task.dvalue, b, h, first_key, p.keys, at);
    });
  }
};

template <class Gradient, int kWidth>
__global__ void __launch_bounds__(kHopperThreads, 1) backward(const __grid_constant__ BackwardTask task) {
  if constexpr (kHopper) {
    extern __shared__ __align__(1024) unsigned char shared[];
    auto& memory = *reinterpret_cast<typename Gradient::template Memory<kWidth>*>(shared);
    if (threadIdx.x == 0) memory.init_barriers();
    __syncthreads();
    if (threadIdx.x < 128) {
      shrink_registers<kCopyRegisters>();
      Gradient::template copy_tiles<kWidth>(task, memory);
    } else {
      grow_registers<kMultiplyRegisters>();
      Gradient::template multiply<kWidth>(task, memory);
    }
  }
}

template <class Gradient>
void launch(BackwardTask& task, const Heads<Bf16>& dout, bool owns_queries, Device device) {
  const Problem& p = task.p;
  const int query_box = owns_queries ? kBlockRows : Gradient::kSteps;
  const int key_box = owns_queries ? Gradient::kSteps : kBlockRows;
  task.query = tile_map(p.query, p.batch, p.queries, p.heads, query_box);
  task.dout = tile_map(dout, p.batch, p.queries, p.heads, query_box);
  task.key = tile_map(p.key, p.batch, p.keys, p.heads, key_box);
  task.value = tile_map(p.value, p.batch, p.keys, p.heads, key_box);
  task.schedule = schedule_of(p, owns_queries ? p.queries : p.keys);
  with_padded_width(p.query.width, [&](auto width) {
    constexpr std::size_t kBytes = sizeof(typename Gradient::template Memory<width.value>);
    const auto kernel = backward<Gradient, width.value>;
    allow_shared_memory(kernel, kBytes);
    kernel<<<blocks_of(task.schedule, device), kHopperThreads, kBytes, context(device).stream>>>(task);
  });
  check_launch("attention_backward");
}

}  // namespace hopper

using namespace hopper;

void launch_hopper_attention_backward(const Problem& p, const Heads<Bf16>& dout, const float* log_normalizer,
                                      const float* delta, const Heads<Bf16>& dquery, const Heads<Bf16>& dkey,
                                      const Heads<Bf16>& dvalue, Device device) {
  BackwardTask task{p, {}, {}, {}, {}, log_normalizer, delta, dquery, dkey, dvalue, {}};
  launch<QueryGradient>(task, dout, true, device);
  launch<KeyValueGradient>(task, dout, false, device);
}

}  // namespace switchyard::cuda
