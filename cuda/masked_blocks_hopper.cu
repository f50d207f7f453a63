// Many tokens, each with its own choice of small experts, on Hopper. Experts of a few neurons are too small a product
// to gather tokens for. So tokens run in an order, and in tiles, that can leave out many blocks of 128 neurons
// (masked_order.cu):
//   1. hidden: tiles of 128 tokens and two of the blocks that they want. Rows of x are gathered in that order; neurons
//      that a token has not chosen become 0 as they are written.
//   2. outputs: tiles of 128 tokens and 256 outputs, summed over the blocks that are wanted. Rows go back to their
//      tokens.
// Both are built as in expert_product_hopper.cu. Every sum has a fixed order, so results do not vary.

#include "core/kernels/elementwise.h"
#include "core/kernels/masked_feed_forward.h"
#include "cuda/expert_product_hopper.cuh"
#include "cuda/masked_order.cuh"
#include "cuda/tensor_map.h"

namespace switchyard::cuda {
namespace {

using namespace expert_product;

constexpr int kColumns = 256;  // of a tile, in both products: two blocks of neurons, or outputs

/// A tile of hidden: kBlockTokens tokens, as far as there are any, from place `first` on; two blocks of neurons, or one
/// and -1. `count` is 0 after the last tile.
struct HiddenTile {
  int first, count, blocks[2];
};

struct HiddenShared {
  Shared<kColumns, 1> ring;
  HiddenTile tiles[kStages];                   // that a stage belongs to
  std::int32_t tokens[kStages][kBlockTokens];  // of a tile, in its first stage
};

struct OutputShared {
  Shared<kColumns, 1> ring;
  std::int32_t tokens[2 * kGroup / 32][16];  // of each multiplying warp's rows
};

/// The first product: hidden [tokens in order, neurons] = activation(x up + bias).
struct HiddenProduct {
  const Bf16 *x, *bias;  // [tokens, width], [neurons] or null
  int width;
  Bf16* hidden;
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other GPUs get empty kernels, never launched

__device__ inline void prepare_barriers(Shared<kColumns, 1>& ring, int producers) {
  if (threadIdx.x < kStages) {
    init_barrier(&ring.full[threadIdx.x], producers);
    init_barrier(&ring.empty[threadIdx.x], 2 * kGroup / 32 * kWarpArrivals);
    fence_barriers();
  }
  __syncthreads();
}

/// Waits until the stage of a step is free, and returns it.
__device__ inline int wait_for_stage(Shared<kColumns, 1>& ring, int step) {
  wait_barrier(&ring.empty[step % kStages], (step / kStages + 1) % 2);
  return step % kStages;
}

/// The copying warpgroup of the first product: rows of x by cp.async, weights by the copy engine.
struct HiddenCopies {
  const HiddenProduct& p;
  const CUtensorMap& up;
  const Choices& choices;
  HiddenShared& shared;
  int step = 0;

  static constexpr int kVectors = kDepth / kVector, kRowsApart = kGroup / kVectors;

  /// The stage is full when all that this warpgroup started is there, and what thread 0 wrote.
  __device__ void announce(int stage, int bytes) {
    arrive_after_copies(&shared.ring.full[stage]);
    if (threadIdx.x == 0) arrive_and_expect(&shared.ring.full[stage], bytes);
    ++step;
  }

  /// Returns the bytes to come.
  __device__ int copy_weight(const HiddenTile& tile, int k0, int stage) const {
    constexpr int kBlockValues = kBlockNeurons * kDepth;
    const int blocks = tile.blocks[1] < 0 ? 1 : 2;
    if (threadIdx.x == 0)
      for (int i = 0; i < blocks; ++i)
        copy_box(shared.ring.stages[stage].weight + i * kBlockValues, up, k0, tile.blocks[i] * kBlockNeurons, 0,
                 &shared.ring.full[stage]);
    return blocks * kBlockValues * static_cast<int>(sizeof(Bf16));
  }

  /// A thread's token of a tile. Lines beyond the last repeat it.
  __device__ std::int32_t token_of(const HiddenTile& tile) const {
    return choices.order[tile.first + min(static_cast<int>(threadIdx.x), tile.count - 1)];
  }

  __device__ void copy_tile(const HiddenTile& tile, std::int32_t token) {
    std::int32_t* tokens = shared.tokens[wait_for_stage(shared.ring, step)];
    tokens[threadIdx.x] = token;
    asm volatile("bar.sync 1, %0;" ::"n"(kGroup) : "memory");
    const int first_line = threadIdx.x / kVectors, vector = threadIdx.x % kVectors;
    const Bf16* rows[kBlockTokens / kRowsApart];
#pragma unroll
    for (int i = 0; i < kBlockTokens / kRowsApart; ++i)
      rows[i] = p.x + static_cast<std::int64_t>(tokens[first_line + i * kRowsApart]) * p.width + vector * kVector;
    for (int k0 = 0; k0 < p.width; k0 += kDepth) {
      const int stage = wait_for_stage(shared.ring, step);
      if (threadIdx.x == 0) shared.tiles[stage] = tile;
      const int bytes = copy_weight(tile, k0, stage);
      Bf16* to = shared.ring.stages[stage].rows + swizzled(first_line, vector);
      const bool valid = k0 + vector * kVector < p.width;
#pragma unroll
      for (int i = 0; i < kBlockTokens / kRowsApart; ++i)
        copy_async(to + i * kRowsApart * kDepth, rows[i] + (valid ? k0 : 0), valid);
      announce(stage, bytes);
    }
  }

  /// This block's share of the tiles that are wanted: every gridDim.x-th. A warp looks at 32 row tiles at once, and for
  /// the tokens of a tile while the one before is copied.
  __device__ void run(const NeuronBlocks& blocks) {
    HiddenTile tile{};
    std::int32_t token = 0;
    int item = blockIdx.x;  // this block's next one among the tiles from here on
    for (int begin = 0; begin < choices.tiles(); begin += 32) {
      const int row_tile = begin + static_cast<int>(threadIdx.x % 32);
      const std::uint32_t groups = row_tile < choices.tiles() ? choices.tile_groups[row_tile] : 0;
      const int own = (blocks.wanted(groups) + 1) / 2, sum = warp_running_sum(own);
      const int all = __shfl_sync(0xffffffffu, sum, 31);
      for (; item < all; item += gridDim.x) {
        const int owner = __ffs(__ballot_sync(0xffffffffu, sum > item)) - 1;
        const int nth = 2 * (item - __shfl_sync(0xffffffffu, sum - own, owner));
        const HiddenTile next = tile_of(blocks, __shfl_sync(0xffffffffu, groups, owner), begin + owner, nth);
        const std::int32_t next_token = token_of(next);
        if (tile.count != 0) copy_tile(tile, token);
        tile = next;
        token = next_token;
      }
      item -= all;
    }
    if (tile.count != 0) copy_tile(tile, token);
    const int stage = wait_for_stage(shared.ring, step);
    if (threadIdx.x == 0) shared.tiles[stage] = {};
    announce(stage, 0);
  }

  /// Of a row tile, the n-th of the blocks that its groups have and the next.
  __device__ HiddenTile tile_of(const NeuronBlocks& blocks, std::uint32_t groups, int row_tile, int n) const {
    const int first = row_tile * kBlockTokens;
    return {first,
            min(kBlockTokens, choices.tokens - first),
            {blocks.nth(groups, n), n + 1 < blocks.wanted(groups) ? blocks.nth(groups, n + 1) : -1}};
  }
};

/// sums + bias for the chosen ones of a block of neurons, 0 for the others. bits: of this lane's two rows.
template <bool kRelu>
__device__ inline void finish_block(const Bias<kBlockNeurons>& biases, const std::uint32_t (&bits)[2],
                                    float (&sums)[kBlockNeurons / 2]) {
#pragma unroll
  for (int n = 0; n < kBlockNeurons / 8; ++n) {
    const float2 bias = __bfloat1622float2(biases.values[n]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t chosen = bits[half] >> (n % 4 * 8 + n / 4 * 2);
      float& first = sums[n * 4 + half * 2];
      float& second = sums[n * 4 + half * 2 + 1];
      first = (chosen & 1) != 0 ? first + bias.x : 0.0f;
      second = (chosen & 2) != 0 ? second + bias.y : 0.0f;
      if constexpr (kRelu)
        first = apply_unary<ops::Activation::relu>(first), second = apply_unary<ops::Activation::relu>(second);
    }
  }
}

/// A multiplying warpgroup's 64 rows of a tile of hidden. What the end needs from memory is asked for at the beginning.
template <bool kRelu>
__device__ inline void multiply_hidden(const HiddenProduct& p, const Choices& choices, const NeuronBlocks& blocks,
                                       HiddenShared& shared, const HiddenTile& tile, int& step) {
  const int warp = threadIdx.x / 32 - kGroup / 32, first_row = warp * 16, group = threadIdx.x % 32 / 4;
  std::uint32_t bits[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t token = shared.tokens[step % kStages][first_row + group + half * 8];
      bits[i][half] = choices.bits[(token * blocks.count + max(tile.blocks[i], 0)) * kBlockWords + threadIdx.x % 4];
    }
  const auto bias_of = [&](int block) {
    const int first = max(block, 0) * kBlockNeurons;
    return Bias<kBlockNeurons>(p.bias == nullptr ? nullptr : p.bias + first, blocks.neurons - first);
  };
  const Bias<kBlockNeurons> bias[2] = {bias_of(tile.blocks[0]), bias_of(tile.blocks[1])};
  __syncwarp();  // one lane releases the stage for all, which have read its tile and tokens
  float sums[1][kColumns / 2];
  accumulate<kColumns, 1, Major::depth>(shared.ring, (p.width + kDepth - 1) / kDepth, step, sums);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (tile.blocks[i] < 0) continue;
    auto& own = reinterpret_cast<float(&)[kBlockNeurons / 2]>(sums[0][i * kBlockNeurons / 2]);
    finish_block<kRelu>(bias[i], bits[i], own);
    store_rows<kBlockNeurons>(own, shared.ring.results[warp],
                              p.hidden + static_cast<std::int64_t>(tile.first + first_row) * blocks.neurons,
                              tile.count - first_row, tile.blocks[i] * kBlockNeurons, blocks.neurons);
  }
}

/// Calls use(groups, place of the first token, first column) for this block's share of the tiles of y. The last tiles,
/// which are the most expensive, come first.
template <class Use>
__device__ inline void for_each_output_tile(const Choices& choices, int outputs, Use use) {
  const int column_tiles = (outputs + kColumns - 1) / kColumns;
  for (int item = blockIdx.x; item < choices.tiles() * column_tiles; item += gridDim.x) {
    const int tile = choices.tiles() - 1 - item / column_tiles;
    use(choices.tile_groups[tile], tile * kBlockTokens, item % column_tiles * kColumns);
  }
}

/// One step's operands of the second product, by the copy engine; called by one thread.
__device__ inline void copy_step(const CUtensorMap& hidden, const CUtensorMap& down, int first, int column, int k0,
                                 Shared<kColumns, 1>& ring, int step) {
  const int stage = wait_for_stage(ring, step);
  auto& to = ring.stages[stage];
  arrive_and_expect(&ring.full[stage], sizeof(to));
  copy_box(to.rows, hidden, k0, first, 0, &ring.full[stage]);
  for (int panel = 0; panel < ring.kPanels; ++panel)
    copy_box(to.weight + panel * kLineValues * kDepth, down, column + panel * kLineValues, k0, 0, &ring.full[stage]);
}

/// A multiplying warpgroup's 64 rows of a tile of y.
__device__ inline void multiply_outputs(const Choices& choices, int steps, int first, int column, OutputShared& shared,
                                        int& step, Bf16* y, int outputs) {
  const int warp = threadIdx.x / 32 - kGroup / 32, lane = threadIdx.x % 32, first_row = first + warp * 16;
  const std::int32_t token = choices.order[min(first_row + lane % 16, choices.tokens - 1)];
  float sums[1][kColumns / 2];
  accumulate<kColumns, 1, Major::wide>(shared.ring, steps, step, sums);
  std::int32_t* tokens = shared.tokens[warp];
  if (lane < 16) tokens[lane] = token;
  __syncwarp();
  const auto row_at = [=](int row) { return y + static_cast<std::int64_t>(tokens[row]) * outputs; };
  store_rows<kColumns>(sums[0], shared.ring.results[warp], row_at, choices.tokens - first_row, column, outputs);
}

#endif

/// hidden, as far as it is wanted.
template <bool kRelu>
__global__ void __launch_bounds__(kBlockThreads, 1)
    hidden_of_blocks(HiddenProduct p, const __grid_constant__ CUtensorMap up, Choices choices, NeuronBlocks blocks) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<HiddenShared*>(memory);
  prepare_barriers(shared.ring, kGroup + 1);
  if (threadIdx.x < kGroup) {
    shrink_registers<72>();
    HiddenCopies{p, up, choices, shared}.run(blocks);
  } else {
    grow_registers<216>();
    for (int step = 0;;) {
      wait_barrier(&shared.ring.full[step % kStages], step / kStages % 2);
      const HiddenTile tile = shared.tiles[step % kStages];
      if (tile.count == 0) return;
      multiply_hidden<kRelu>(p, choices, blocks, shared, tile, step);
    }
  }
#endif
}

/// y [tokens, outputs] = hidden [tokens in order, neurons] down, over the blocks that are wanted.
__global__ void __launch_bounds__(kBlockThreads, 1)
    outputs_of_blocks(const __grid_constant__ CUtensorMap hidden, const __grid_constant__ CUtensorMap down,
                      Choices choices, NeuronBlocks blocks, Bf16* y, int outputs) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<OutputShared*>(memory);
  prepare_barriers(shared.ring, 1);
  int step = 0;
  if (threadIdx.x < kGroup) {
    shrink_registers<40>();
    if (threadIdx.x != 0) return;
    for_each_output_tile(choices, outputs, [&](std::uint32_t groups, int first, int column) {
      for (; groups != 0; groups &= groups - 1) {
        const int begin = (__ffs(groups) - 1) * blocks.per_group, end = min(begin + blocks.per_group, blocks.count);
        for (int k0 = begin * kBlockNeurons; k0 < end * kBlockNeurons; k0 += kDepth)
          copy_step(hidden, down, first, column, k0, shared.ring, step++);
      }
    });
  } else {
    grow_registers<232>();
    for_each_output_tile(choices, outputs, [&](std::uint32_t groups, int first, int column) {
      const int steps = blocks.wanted(groups) * (kBlockNeurons / kDepth);
      multiply_outputs(choices, steps, first, column, shared, step, y, outputs);
    });
  }
#endif
}

/// Activations that leave 0 as it is, so that neurons may be masked before them.
bool keeps_zero(ops::Activation activation) {
  using ops::Activation;
  return activation == Activation::identity || activation == Activation::relu || activation == Activation::gelu ||
         activation == Activation::gelu_tanh || activation == Activation::silu;
}

bool aligned(const Tensor& x) { return !x.defined() || reinterpret_cast<std::uintptr_t>(x.raw()) % 16 == 0; }

}  // namespace

bool block_feed_forward_fits(const Tensor& x, const ops::ExpertLayer& layer, ops::Activation activation) {
  const std::int64_t neurons = layer.up.size(0) * layer.up.size(2);
  return context(x.device()).hopper && x.dtype() == DType::bf16 && keeps_zero(activation) && x.size(1) % kVector == 0 &&
         neurons % kVector == 0 && layer.down.size(2) % kVector == 0 && aligned(x) && aligned(layer.up) &&
         aligned(layer.up_bias) && aligned(layer.down);
}

void block_feed_forward(const Tensor& x, const ops::ExpertLayer& layer, const Tensor& mask, ops::Activation activation,
                        const Tensor& hidden, const Tensor& y) {
  const Context& ctx = context(x.device());
  const std::int64_t tokens = x.size(0), width = x.size(1), neurons = hidden.size(1), outputs = y.size(1);
  const NeuronBlocks blocks(neurons);
  const OrderedTokens ordered = order_by_choice(mask, blocks);
  const Choices choices = ordered.choices();
  const auto* up = pointer<bfloat16>(layer.up);
  const auto* down = pointer<bfloat16>(layer.down);

  const HiddenProduct product{pointer<bfloat16>(x), pointer<bfloat16>(layer.up_bias), static_cast<int>(width),
                              pointer<bfloat16>(hidden)};
  const auto hidden_of = activation == ops::Activation::relu ? hidden_of_blocks<true> : hidden_of_blocks<false>;
  allow_shared_memory(hidden_of, sizeof(HiddenShared));
  hidden_of<<<ctx.multiprocessors, kBlockThreads, sizeof(HiddenShared), ctx.stream>>>(
      product, tensor_map(up, {width, neurons, 1}, {width, width * neurons}, kBlockNeurons), choices, blocks);
  check_launch("masked_feed_forward: hidden");
  if (activation != ops::Activation::identity && activation != ops::Activation::relu) unary(activation, hidden, hidden);

  allow_shared_memory(outputs_of_blocks, sizeof(OutputShared));
  outputs_of_blocks<<<ctx.multiprocessors, kBlockThreads, sizeof(OutputShared), ctx.stream>>>(
      tensor_map(pointer<bfloat16>(hidden), {neurons, tokens, 1}, {neurons, neurons * tokens}, kBlockTokens),
      tensor_map(down, {outputs, neurons, 1}, {outputs, outputs * neurons}, kDepth), choices, blocks,
      pointer<bfloat16>(y), static_cast<int>(outputs));
  check_launch("masked_feed_forward: outputs");
}

}  // namespace switchyard::cuda
