#pragma once

#include "core/tensor.h"
#include "cuda/launch.cuh"

// Which blocks of tokens and neurons the small experts that tokens choose lie in, and in which order the tokens run:
// how, and why, in masked_order.cu.

namespace switchyard::cuda {

constexpr int kBlockNeurons = 128, kBlockTokens = 128;
constexpr int kBlockWords = kBlockNeurons / 32;  // of a token's bits

/// The neurons of a layer in blocks, and those in up to 32 groups: one for each bit of a word.
struct NeuronBlocks {
  int neurons, count, per_group;  // neurons of all experts

  explicit NeuronBlocks(std::int64_t all_neurons);
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

/// What tokens want. Bit 8 (n % 4) + 2 (n / 4) + i of word m of a block is its neuron 8 n + 2 m + i: a word holds the
/// neurons whose sums one lane of a matrix product has.
struct Choices {
  int tokens;
  const std::uint32_t* bits;         // [tokens, blocks, kBlockWords]: the chosen neurons, in the tokens' own order
  const std::int32_t* order;         // [tokens]: the token at each place
  const std::uint32_t* tile_groups;  // [tiles of kBlockTokens places]: the groups that one of these tokens wants

  __host__ __device__ int tiles() const { return (tokens + kBlockTokens - 1) / kBlockTokens; }
};

/// The tensors behind Choices.
struct OrderedTokens {
  Tensor bits, order, tile_groups;

  Choices choices() const;
};

/// Orders the tokens of a dense mask [N, E]. Every tile wants the first group at least.
OrderedTokens order_by_choice(const Tensor& mask, const NeuronBlocks& blocks);

}  // namespace switchyard::cuda
