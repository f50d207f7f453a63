// Many tokens, each with its own choice of small experts, on Hopper. Experts of a few neurons are too small a product
// to gather tokens for, so what is left out are blocks of tokens and neurons: 128 neurons (or, in wide layers, a
// multiple) are a group, and a group runs for 128 tokens at a time, where at least one of them wants one of its
// experts. Neurons that a token does not want become 0 as the first product is written. Three small kernels and two
// products:
//   1. choices: the chosen neurons of every token as bits, and the groups they lie in as one number, its key.
//   2. order: tokens sorted by key. Then few of the tokens in a tile differ in the groups that they want, fewest in
//      the last groups. So the fewest blocks run where experts that are seldom chosen come last.
//   3. groups of tiles: what the tokens of each tile want together.
//   4. hidden: the first product, for groups that are wanted; rows of x are gathered in the order of the keys.
//   5. outputs: the second product, over groups that are wanted; rows go back to their tokens.
// Every sum has a fixed order, so results do not vary.

#include <cub/device/device_radix_sort.cuh>

#include "core/kernels/elementwise.h"
#include "core/kernels/masked_feed_forward.h"
#include "cuda/expert_product_hopper.cuh"
#include "cuda/tensor_map.h"

namespace switchyard::cuda {
namespace {

using namespace expert_product;

constexpr int kBlockNeurons = 128, kMostGroups = 32;  // columns of a tile of hidden; bits of a key
constexpr int kBlockWords = kBlockNeurons / 32;       // of a token's bits
constexpr int kOutputColumns = 256;

using HiddenShared = Shared<kBlockNeurons, 2>;   // tiles of 256 tokens
using OutputShared = Shared<kOutputColumns, 1>;  // tiles of 128

/// The layer in blocks of neurons and groups of blocks.
struct Blocks {
  int neurons, count, per_group;  // neurons of all experts

  static Blocks of(std::int64_t neurons) {
    const int count = static_cast<int>((neurons + kBlockNeurons - 1) / kBlockNeurons);
    return {static_cast<int>(neurons), count, (count + kMostGroups - 1) / kMostGroups};
  }
  __host__ __device__ int groups() const { return (count + per_group - 1) / per_group; }
  /// How many blocks `wanted_groups` have. Only the last group may have fewer than others.
  __device__ int wanted(std::uint32_t wanted_groups) const {
    const bool last = wanted_groups >> (groups() - 1) & 1;
    return __popc(wanted_groups) * per_group - (last ? groups() * per_group - count : 0);
  }
  /// The n-th of them.
  __device__ int nth(std::uint32_t wanted_groups, int n) const {
    for (int skipped = n / per_group; skipped > 0; --skipped) wanted_groups &= wanted_groups - 1;
    return (__ffs(wanted_groups) - 1) * per_group + n % per_group;
  }
};

/// What tokens want, in the order in which they run.
struct Choices {
  int tokens;
  const std::uint32_t* bits;         // [tokens, blocks, kBlockWords], in the tokens' own order
  const std::uint32_t* tile_groups;  // [tiles of kUnitRows tokens]: bit g for group g
  const std::int32_t* order;         // [tokens]: the token at each place

  __host__ __device__ int tiles() const { return (tokens + kUnitRows - 1) / kUnitRows; }
};

/// A warp for each token.
__global__ void find_choices(const bool* mask, int tokens, int experts, Blocks blocks, std::uint32_t* bits,
                             std::uint32_t* keys, std::int32_t* ids) {
  const int token = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
  if (token >= tokens) return;
  const bool* row = mask + static_cast<std::int64_t>(token) * experts;
  const int size = blocks.neurons / experts, words = blocks.count * kBlockWords;
  std::uint32_t key = 0;
  for (int word = lane; word < words; word += 32) {
    std::uint32_t chosen = 0;
    const int first = word * 32, end = min(first + 32, blocks.neurons);
    for (int expert = first / size, neuron = first; neuron < end; ++expert) {
      const int next = min((expert + 1) * size, end);
      if (row[expert]) chosen |= 0xffffffffu >> (32 - (next - neuron)) << (neuron - first);
      neuron = next;
    }
    bits[static_cast<std::int64_t>(token) * words + word] = chosen;
    if (chosen != 0) key |= 1u << (word / kBlockWords / blocks.per_group);
  }
  key = warp_reduce(key, [](std::uint32_t a, std::uint32_t b) { return a | b; });
  if (lane == 0) keys[token] = key, ids[token] = token;
}

/// A warp for each tile. Every tile wants the first group at least: tokens without experts get their zeros from it.
__global__ void find_tile_groups(const std::uint32_t* keys, int tokens, std::uint32_t* tile_groups) {
  const int tile = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
  const int first = tile * kUnitRows;
  if (first >= tokens) return;
  std::uint32_t groups = 1;
  for (int place = first + lane; place < min(first + kUnitRows, tokens); place += 32) groups |= keys[place];
  groups = warp_reduce(groups, [](std::uint32_t a, std::uint32_t b) { return a | b; });
  if (lane == 0) tile_groups[tile] = groups;
}

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other GPUs get empty kernels, never launched

template <int kColumns, int kBlocks>
__device__ inline void prepare_barriers(Shared<kColumns, kBlocks>& shared, int producers) {
  if (threadIdx.x < kStages) {
    init_barrier(&shared.full[threadIdx.x], producers);
    init_barrier(&shared.empty[threadIdx.x], 2 * kGroup / 32);
    fence_barriers();
  }
  __syncthreads();
}

/// Calls use(tile) for this block's share of the tiles of hidden that are wanted: up to 256 tokens, one block of
/// neurons.
template <class Use>
__device__ inline void for_each_hidden_tile(const Choices& choices, const Blocks& blocks, Use use) {
  int next = blockIdx.x;  // this block's next one among the blocks that are wanted from here on
  for (int tile = 0; tile < choices.tiles(); tile += 2) {
    std::uint32_t groups = choices.tile_groups[tile];
    if (tile + 1 < choices.tiles()) groups |= choices.tile_groups[tile + 1];
    const int wanted = blocks.wanted(groups), first = tile * kUnitRows;
    for (; next < wanted; next += gridDim.x)
      use(Where{0, first, min(2 * kUnitRows, choices.tokens - first), blocks.nth(groups, next) * kBlockNeurons});
    next -= wanted;
  }
}

/// Calls use(groups, tile) for this block's share of the tiles of y. The last tiles, which are the most expensive, come
/// first.
template <class Use>
__device__ inline void for_each_output_tile(const Choices& choices, int outputs, Use use) {
  const int column_tiles = (outputs + kOutputColumns - 1) / kOutputColumns;
  for (int item = blockIdx.x; item < choices.tiles() * column_tiles; item += gridDim.x) {
    const int tile = choices.tiles() - 1 - item / column_tiles, first = tile * kUnitRows;
    use(choices.tile_groups[tile],
        Where{0, first, min(kUnitRows, choices.tokens - first), item % column_tiles * kOutputColumns});
  }
}

/// Calls use(k0) for the steps of the second product's inner size, the neurons, that a tile wants. Returns how many.
template <class Use>
__device__ inline int for_each_step(std::uint32_t groups, const Blocks& blocks, Use use) {
  int steps = 0;
  for (; groups != 0; groups &= groups - 1) {
    const int begin = (__ffs(groups) - 1) * blocks.per_group * kBlockNeurons;
    for (int k0 = begin; k0 < min(begin + blocks.per_group * kBlockNeurons, blocks.neurons); k0 += kDepth, ++steps)
      use(k0);
  }
  return steps;
}

/// A warp's 16 rows of a tile of hidden, from `first_row` of the tile on.
struct HiddenRows {
  uint4 bits[2];  // of this lane's two rows

  __device__ HiddenRows(const Choices& choices, const Blocks& blocks, const Where& tile, int first_row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(first_row + static_cast<int>(threadIdx.x) % 32 / 4 + half * 8, tile.count - 1);
      const std::int64_t first = static_cast<std::int64_t>(choices.order[tile.first + row]) * blocks.count;
      bits[half] = reinterpret_cast<const uint4*>(choices.bits)[first + tile.column / kBlockNeurons];
    }
  }

  /// sums + bias for the chosen neurons, 0 for the others.
  __device__ void finish(const PairProduct<Bf16>& p, const Where& tile, float (&sums)[kBlockNeurons / 2]) const {
    const int member = threadIdx.x % 4;
    const bool relu = p.activation == ops::Activation::relu;
#pragma unroll
    for (int n = 0; n < kBlockNeurons / 8; ++n) {
      const int column = tile.column + n * 8 + member * 2;
      float2 bias{};
      if (p.bias != nullptr && column < p.outer)
        bias = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p.bias + column));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t word = n < 4 ? bits[half].x : n < 8 ? bits[half].y : n < 12 ? bits[half].z : bits[half].w;
        const std::uint32_t chosen = word >> (n % 4 * 8 + member * 2);
        float& first = sums[n * 4 + half * 2];
        float& second = sums[n * 4 + half * 2 + 1];
        first = (chosen & 1) != 0 ? first + bias.x : 0.0f;
        second = (chosen & 2) != 0 ? second + bias.y : 0.0f;
        if (relu)
          first = apply_unary<ops::Activation::relu>(first), second = apply_unary<ops::Activation::relu>(second);
      }
    }
  }
};

__device__ inline void multiply_hidden(const PairProduct<Bf16>& p, const Choices& choices, const Blocks& blocks,
                                       const Where& tile, HiddenShared& shared, int& step) {
  const int warp = threadIdx.x / 32 - kGroup / 32;
  HiddenRows rows(choices, blocks, tile, warp * 16);  // before the sums, so that they need not wait for it
  float sums[2][kBlockNeurons / 2];
  accumulate<kBlockNeurons, 2, Major::depth>(shared, (p.inner + kDepth - 1) / kDepth, step, sums);
  const HiddenRows next_rows(choices, blocks, tile, warp * 16 + kUnitRows);
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    const int first_row = warp * 16 + block * kUnitRows;
    rows.finish(p, tile, sums[block]);
    store_rows<kBlockNeurons>(sums[block], shared.results[warp], p.y + std::int64_t{tile.first + first_row} * p.outer,
                              tile.count - first_row, tile.column, p.outer);
    rows = next_rows;
  }
}

#endif

/// hidden [tokens in order, neurons], as far as it is wanted. p's one expert is the layer.
__global__ void __launch_bounds__(kBlockThreads, 1)
    hidden_of_blocks(PairProduct<Bf16> p, const __grid_constant__ Copies copies, Choices choices, Blocks blocks) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<HiddenShared*>(memory);
  prepare_barriers(shared, kGroup + 1);
  if (threadIdx.x < kGroup) {
    shrink_registers<88>();
    Gather<kBlockNeurons, 2, Major::depth> gather{p, copies, shared};
    for_each_hidden_tile(choices, blocks, [&](const Where& tile) { gather.gather_tile(tile); });
    gather.end();
  } else {
    grow_registers<208>();
    for (int step = 0;;) {
      wait_barrier(&shared.full[step % kStages], step / kStages % 2);
      const Where tile = shared.where[step % kStages];
      if (tile.count == 0) return;
      multiply_hidden(p, choices, blocks, tile, shared, step);
    }
  }
#endif
}

/// y [tokens, outputs] = hidden [tokens in order, neurons] down, over the neurons that are wanted.
__global__ void __launch_bounds__(kBlockThreads, 1)
    outputs_of_blocks(const __grid_constant__ CUtensorMap hidden, const __grid_constant__ CUtensorMap down,
                      Choices choices, Blocks blocks, Bf16* y, int outputs) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<OutputShared*>(memory);
  prepare_barriers(shared, 1);
  int step = 0;
  if (threadIdx.x < kGroup) {
    shrink_registers<40>();
    if (threadIdx.x != 0) return;
    for_each_output_tile(choices, outputs, [&](std::uint32_t groups, const Where& tile) {
      for_each_step(groups, blocks, [&](int k0) {
        auto& to = shared.stages[step % kStages];
        std::uint64_t* full = &shared.full[step % kStages];
        wait_barrier(&shared.empty[step % kStages], (step / kStages + 1) % 2);
        arrive_and_expect(full, sizeof(to));
        copy_box(to.rows, hidden, k0, tile.first, 0, full);
        for (int panel = 0; panel < OutputShared::kPanels; ++panel)
          copy_box(to.weight + panel * kLineValues * kDepth, down, tile.column + panel * kLineValues, k0, 0, full);
        ++step;
      });
    });
  } else {
    grow_registers<232>();
    const int warp = threadIdx.x / 32 - kGroup / 32, first_row = warp * 16;
    for_each_output_tile(choices, outputs, [&](std::uint32_t groups, const Where& tile) {
      float sums[1][kOutputColumns / 2];
      accumulate<kOutputColumns, 1, Major::wide>(shared, for_each_step(groups, blocks, [](int) {}), step, sums);
      const auto row_of_y = [&](int row) {
        return y + static_cast<std::int64_t>(choices.order[tile.first + first_row + row]) * outputs;
      };
      store_rows<kOutputColumns>(sums[0], shared.results[warp], row_of_y, tile.count - first_row, tile.column, outputs);
    });
  }
#endif
}

/// The tokens' order, and their choices.
struct Ordered {
  Tensor bits, tile_groups, order;

  Ordered(const Tensor& mask, const Blocks& blocks) {
    const Context& ctx = context(mask.device());
    const std::int64_t tokens = mask.size(0);
    const auto words = [&](const Shape& shape) { return Tensor::empty(shape, DType::i32, mask.device()); };
    bits = words({tokens, blocks.count, kBlockWords});
    tile_groups = words({(tokens + kUnitRows - 1) / kUnitRows});
    order = words({tokens});
    const Tensor keys = words({tokens}), sorted_keys = words({tokens}), ids = words({tokens});
    const auto count = static_cast<int>(tokens);
    find_choices<<<blocks_for(tokens * 32, kThreads), kThreads, 0, ctx.stream>>>(
        mask.data<bool>(), count, static_cast<int>(mask.size(1)), blocks, bit_pointer(bits), bit_pointer(keys),
        ids.data<std::int32_t>());
    check_launch("masked_feed_forward: choices");
    const auto sort = [&](void* room, std::size_t& bytes) {
      check_cuda(cub::DeviceRadixSort::SortPairs(room, bytes, bit_pointer(keys), bit_pointer(sorted_keys),
                                                 ids.data<std::int32_t>(), order.data<std::int32_t>(), count, 0,
                                                 blocks.groups(), ctx.stream),
                 "masked_feed_forward: order");
    };
    std::size_t bytes = 0;
    sort(nullptr, bytes);
    const Tensor room = Tensor::empty({static_cast<std::int64_t>(bytes)}, DType::boolean, mask.device());
    sort(room.raw(), bytes);
    find_tile_groups<<<blocks_for(tile_groups.numel() * 32, kThreads), kThreads, 0, ctx.stream>>>(
        bit_pointer(sorted_keys), count, bit_pointer(tile_groups));
    check_launch("masked_feed_forward: groups");
  }

  Choices choices() const {
    return {static_cast<int>(order.numel()), bit_pointer(bits), bit_pointer(tile_groups), order.data<std::int32_t>()};
  }

  static std::uint32_t* bit_pointer(const Tensor& words) {
    return reinterpret_cast<std::uint32_t*>(words.data<std::int32_t>());
  }
};

/// Activations that leave 0 as it is, so that neurons may be masked before them.
bool keeps_zero(ops::Activation activation) {
  using ops::Activation;
  return activation == Activation::identity || activation == Activation::relu || activation == Activation::gelu ||
         activation == Activation::gelu_tanh || activation == Activation::silu;
}

bool aligned(const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.raw()) % 16 == 0; }

}  // namespace

bool block_feed_forward_fits(const Tensor& x, const ops::ExpertLayer& layer, ops::Activation activation) {
  const std::int64_t neurons = layer.up.size(0) * layer.up.size(2);
  return context(x.device()).hopper && x.dtype() == DType::bf16 && keeps_zero(activation) && x.size(1) % kVector == 0 &&
         neurons % kVector == 0 && layer.down.size(2) % kVector == 0 && aligned(x) && aligned(layer.up) &&
         aligned(layer.down);
}

void block_feed_forward(const Tensor& x, const ops::ExpertLayer& layer, const Tensor& mask, ops::Activation activation,
                        const Tensor& hidden, const Tensor& y) {
  const Context& ctx = context(x.device());
  const std::int64_t tokens = x.size(0), width = x.size(1), neurons = hidden.size(1), outputs = y.size(1);
  const Blocks blocks = Blocks::of(neurons);
  const Ordered ordered(mask, blocks);
  const Choices choices = ordered.choices();
  const auto* up = pointer<bfloat16>(layer.up);
  const auto* down = pointer<bfloat16>(layer.down);

  PairProduct<Bf16> product{};
  product.source = pointer<bfloat16>(x);
  product.source_rows = {choices.order, 1};
  product.bias = pointer<bfloat16>(layer.up_bias);
  product.inner = static_cast<int>(width);
  product.outer = static_cast<int>(neurons);
  product.activation = activation;
  product.y = pointer<bfloat16>(hidden);
  Copies copies{};
  copies.weight = tensor_map(up, {width, neurons, 1}, {width, width * neurons}, kBlockNeurons);
  allow_shared_memory(hidden_of_blocks, sizeof(HiddenShared));
  hidden_of_blocks<<<ctx.multiprocessors, kBlockThreads, sizeof(HiddenShared), ctx.stream>>>(product, copies, choices,
                                                                                             blocks);
  check_launch("masked_feed_forward: hidden");
  if (activation != ops::Activation::identity && activation != ops::Activation::relu) unary(activation, hidden, hidden);

  allow_shared_memory(outputs_of_blocks, sizeof(OutputShared));
  outputs_of_blocks<<<ctx.multiprocessors, kBlockThreads, sizeof(OutputShared), ctx.stream>>>(
      tensor_map(pointer<bfloat16>(hidden), {neurons, tokens, 1}, {neurons, neurons * tokens}, kUnitRows),
      tensor_map(down, {outputs, neurons, 1}, {outputs, outputs * neurons}, kDepth), choices, blocks,
      pointer<bfloat16>(y), static_cast<int>(outputs));
  check_launch("masked_feed_forward: outputs");
}

}  // namespace switchyard::cuda
