// Flash attention on Hopper, forward (Shah et al., 2024, arXiv 2407.08608): the products of the next tile of keys run
// on the tensor cores while the softmax of this one runs on the other units. A block owns 128 queries, each of its two
// multiplying warpgroups 64 of them; weights never leave registers.

#include "cuda/attention_hopper.cuh"

namespace switchyard::cuda {
namespace hopper {

constexpr int kKeys = 128, kStages = 2, kQueryStages = 2;

template <int kWidth>
struct ForwardMemory {
  Bf16 query[kQueryStages][kTileElements<kWidth, kBlockRows>];
  Bf16 key[kStages][kTileElements<kWidth, kKeys>], value[kStages][kTileElements<kWidth, kKeys>];
  std::uint64_t query_full[kQueryStages], query_empty[kQueryStages];
  std::uint64_t key_full[kStages], key_empty[kStages], value_full[kStages], value_empty[kStages];
};

struct ForwardTask {
  Problem p;
  TileMap query, key, value;
  Heads<Bf16> out;
  float* log_normalizer;
  Schedule schedule;

  /// Keys that some query of a tile sees.
  __device__ int key_end(int tile) const { return p.key_end(min(p.queries, (tile + 1) * kBlockRows) - 1); }
};

/// One thread copies the tiles in the order in which they are used.
template <int kWidth>
__device__ void copy_tiles(const ForwardTask& task, ForwardMemory<kWidth>& memory) {
  RingPosition<kQueryStages> query;
  RingPosition<kStages> ring;
  task.schedule.for_each([&](int tile, int h, int b) {
    const int end = task.key_end(tile);
    for (int first_key = 0; first_key < end; first_key += kKeys) {
      if (first_key == 0) {
        wait_barrier(&memory.query_empty[query.stage], query.parity ^ 1);
        arrive_and_expect(&memory.query_full[query.stage], kTileBytes<kWidth, kBlockRows>);
        task.query.copy<kWidth, kBlockRows>(memory.query[query.stage], b, h, tile * kBlockRows,
                                            &memory.query_full[query.stage]);
        query.advance();
      }
      const int s = ring.stage;
      wait_barrier(&memory.key_empty[s], ring.parity ^ 1);
      arrive_and_expect(&memory.key_full[s], kTileBytes<kWidth, kKeys>);
      task.key.copy<kWidth, kKeys>(memory.key[s], b, h, first_key, &memory.key_full[s]);
      wait_barrier(&memory.value_empty[s], ring.parity ^ 1);
      arrive_and_expect(&memory.value_full[s], kTileBytes<kWidth, kKeys>);
      task.value.copy<kWidth, kKeys>(memory.value[s], b, h, first_key, &memory.value_full[s]);
      ring.advance();
    }
  });
}

/// The running softmax of a lane's two rows, in powers of two.
struct Softmax {
  float scale;  // of the logits, times log2(e)
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

  /// Turns logits into weights; `correction` is what earlier sums are to be multiplied with.
  __device__ void apply(float (&logits)[kKeys / 2], float (&correction)[2]) {
    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float next = largest[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        next = fmaxf(next, fmaxf(logits[n * 4 + half * 2], logits[n * 4 + half * 2 + 1]));
      next = fmaxf(next, __shfl_xor_sync(0xffffffffu, next, 1));
      next = fmaxf(next, __shfl_xor_sync(0xffffffffu, next, 2));
      shift[half] = next == -INFINITY ? 0.0f : next * scale;
      correction[half] = exp2_of(largest[half] * scale - shift[half]);
      largest[half] = next;
      total[half] *= correction[half];
    }
#pragma unroll
    for (int n = 0; n < kKeys / 2; ++n) {
      const int half = n / 2 % 2;
      logits[n] = exp2_of(logits[n] * scale - shift[half]);
      total[half] += logits[n];
    }
  }
  /// Completes the totals, of which each lane has a part; `inverse` is what the sums are to be multiplied with.
  __device__ void finish(float (&inverse)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
      total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
      inverse[half] = total[half] == 0.0f ? 0.0f : 1.0f / total[half];
    }
  }
};

template <int kWidth>
__device__ void attend(const ForwardTask& task, ForwardMemory<kWidth>& memory) {
  const Problem& p = task.p;
  const GroupLane at;
  RingPosition<kQueryStages> query;
  RingPosition<kStages> ring;
  task.schedule.for_each([&](int tile, int h, int b) {
    const int first_query = tile * kBlockRows + at.group * kGroupRows, end = task.key_end(tile);
    float sums[kWidth / 2] = {}, logits[kKeys / 2], correction[2];
    std::uint32_t weights[kKeys / 16][4];
    Softmax softmax{p.scale * kLog2e};
    const Bf16* query_rows = memory.query[query.stage] + at.group * kGroupRows * kLineValues;
    wait_barrier(&memory.query_full[query.stage], query.parity);

    const auto start_keys = [&] {
      wait_barrier(&memory.key_full[ring.stage], ring.parity);
      pin(logits);
      wgmma_fence();
      start_logits<kWidth, kBlockRows, kKeys>(logits, query_rows, memory.key[ring.stage]);
      wgmma_commit();
    };
    const auto weigh = [&](int first_key) {
      hide_keys<kKeys>(p, b, first_query, first_key, at, logits);
      softmax.apply(logits, correction);
      if (p.dropout == 0) return;
      drop(kept_bits<kKeys / 8, false>(p, b, h, first_query, first_key, at), p.dropout, logits);
    };
    const auto start_values = [&](const RingPosition<kStages>& from) {
      wait_barrier(&memory.value_full[from.stage], from.parity);
      pin(sums);
      wgmma_fence();
      start_weighted_rows<kWidth, kKeys>(sums, weights, memory.value[from.stage]);
      wgmma_commit();
    };

    start_keys();
    wgmma_wait<0>();
    pin(logits);
    arrive_of_warp(&memory.key_empty[ring.stage], at.lane);
    weigh(0);
    pack_weights<kKeys>(logits, weights);
    for (int first_key = kKeys; first_key < end; first_key += kKeys) {
      const RingPosition<kStages> last = ring;
      ring.advance();
      start_keys();
      start_values(last);
      wgmma_wait<1>();
      pin(logits);
      arrive_of_warp(&memory.key_empty[ring.stage], at.lane);
      weigh(first_key);
      wgmma_wait<0>();
      pin(sums);
      arrive_of_warp(&memory.value_empty[last.stage], at.lane);
#pragma unroll
      for (int n = 0; n < kWidth / 2; ++n) sums[n] *= correction[n / 2 % 2];
      pack_weights<kKeys>(logits, weights);
    }
    arrive_of_warp(&memory.query_empty[query.stage], at.lane);
    query.advance();
    start_values(ring);
    wgmma_wait<0>();
    pin(sums);
    arrive_of_warp(&memory.value_empty[ring.stage], at.lane);
    ring.advance();

    float inverse[2];
    softmax.finish(inverse);
    if (at.pair == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_query + at.row(half);
        if (row < p.queries)
          task.log_normalizer[(static_cast<std::int64_t>(b) * p.heads + h) * p.queries + row] =
              softmax.largest[half] * p.scale + logf(softmax.total[half]);
      }
    }
    store_rows<kWidth>(sums, inverse, task.out, b, h, first_query, p.queries, at);
  });
}

template <int kWidth>
__global__ void __launch_bounds__(kHopperThreads, 1) forward(const __grid_constant__ ForwardTask task) {
  if constexpr (kHopper) {
    extern __shared__ __align__(1024) unsigned char shared[];
    auto& memory = *reinterpret_cast<ForwardMemory<kWidth>*>(shared);
    if (threadIdx.x == 0) {
      for (int s = 0; s < kQueryStages; ++s) {
        init_barrier(&memory.query_full[s], 1);
        init_barrier(&memory.query_empty[s], kGroups * 4 * kWarpArrivals);
      }
      for (int s = 0; s < kStages; ++s) {
        init_barrier(&memory.key_full[s], 1);
        init_barrier(&memory.value_full[s], 1);
        init_barrier(&memory.key_empty[s], kGroups * 4 * kWarpArrivals);
        init_barrier(&memory.value_empty[s], kGroups * 4 * kWarpArrivals);
      }
      fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
      shrink_registers<kCopyRegisters>();
      if (threadIdx.x == 0) copy_tiles<kWidth>(task, memory);
    } else {
      grow_registers<kMultiplyRegisters>();
      attend<kWidth>(task, memory);
    }
  }
}

}  // namespace hopper

using namespace hopper;

void launch_hopper_attention(const Problem& p, const Heads<Bf16>& out, float* log_normalizer, Device device) {
  ForwardTask task{p,
                   tile_map(p.query, p.batch, p.queries, p.heads, kBlockRows),
                   tile_map(p.key, p.batch, p.keys, p.heads, kKeys),
                   tile_map(p.value, p.batch, p.keys, p.heads, kKeys),
                   out,
                   log_normalizer,
                   schedule_of(p, p.queries)};
  with_padded_width(p.query.width, [&](auto width) {
    constexpr std::size_t kBytes = sizeof(ForwardMemory<width.value>);
    allow_shared_memory(forward<width.value>, kBytes);
    forward<width.value><<<blocks_of(task.schedule, device), kHopperThreads, kBytes, context(device).stream>>>(task);
  });
  check_launch("attention");
}

}  // namespace switchyard::cuda
