// The feed-forward of a converted layer (D2DMoE), forward only, at the authors' benchmark: 256 sequences of 197 tokens,
// width 768, 3072 neurons, with a given share of the experts run. Beside it the dense layer that it was split from.
// (decoding.cpp has the layer's decoding.)
//
//   d2dmoe_<experts>x<neurons>_<percent>_random       every token chooses by itself: nothing to share
//   d2dmoe_<experts>x<neurons>_<percent>_sequences    nine in ten choices are those of the token's sequence
//   d2dmoe_<experts>x<neurons>_<percent>_skewed       some tokens choose more than others, the first experts are chosen
//                                                     more often than the last, as in converted models
//   d2dmoe_<experts>x<neurons>_router                 scores and gate alone, which these rows leave out

#include "moe/conversion/dynamic_feed_forward.h"

#include <cmath>

#include "autograd/grad_mode.h"
#include "bench/gpu/row.h"
#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/ops/random.h"

namespace switchyard::bench {
namespace {

constexpr std::int64_t kSequences = 256, kLength = 197, kTokens = kSequences * kLength;
constexpr std::int64_t kWidth = 768, kHidden = 3072;

enum class Mask { random, sequences, skewed };

struct Case {
  std::int64_t experts;
  int percent;
  Mask mask;
};

moe::DynamicFeedForward random_layer(std::int64_t experts) {
  moe::ExpertWeights weights;
  weights.up = random_tensor({experts, kWidth, kHidden / experts});
  weights.up_bias = random_tensor({experts, kHidden / experts});
  weights.down = random_tensor({experts, kHidden / experts, kWidth});
  return moe::DynamicFeedForward(weights, ops::Activation::relu);
}

Tensor random_mask(const Shape& shape, double share) {
  static Generator generator(2, Device::cuda());
  return ops::bernoulli(shape, generator.next(shape.numel()), share);
}

/// Mean of exp(-rank / (scale level)) over ranks in [0, 1] and levels in [0, 2].
double skewed_share(double scale) {
  constexpr int kLevels = 1000;
  double sum = 0;
  for (int i = 0; i < kLevels; ++i) {
    const double decay = scale * 2 * (i + 0.5) / kLevels;
    sum += decay * (1 - std::exp(-1 / decay)) / kLevels;
  }
  return sum;
}

/// bool [tokens, experts]: an expert is chosen with probability exp(-rank / (scale level)), its rank in [0, 1], with a
/// level in [0, 2] for each token.
Tensor skewed_mask(std::int64_t tokens, std::int64_t experts, double share) {
  double low = 0.01, high = 100;
  for (int i = 0; i < 50; ++i) {
    const double middle = std::sqrt(low * high);
    (skewed_share(middle) < share ? low : high) = middle;
  }
  Generator generator(3, Device::cuda());
  const Tensor ranks =
      ops::affine(Tensor::arange(experts, DType::f32, Device::cuda()), 1 / static_cast<double>(experts));
  const Tensor decays = ops::uniform({tokens, 1}, generator.next(tokens), 0, 2 * low);
  const Tensor chances = ops::unary(ops::Unary::exp, ops::affine(ops::divide(ranks, decays), -1));
  const Tensor draws = ops::uniform(chances.shape(), generator.next(chances.numel()));
  return ops::binary(ops::Binary::less, draws, chances);
}

/// bool [kTokens, experts], true with probability `percent`.
Tensor mask_of(const Case& c) {
  const double share = c.percent / 100.0;
  if (c.mask == Mask::skewed) return skewed_mask(kTokens, c.experts, share);
  const Tensor own = random_mask({kTokens, c.experts}, share);
  if (c.mask == Mask::random) return own;
  const Shape by_sequence = {kSequences, kLength, c.experts};
  const Tensor follows = random_mask(by_sequence, 0.9).to(DType::f32);
  const Tensor common = random_mask({kSequences, 1, c.experts}, share).to(DType::f32);
  const Tensor chosen = ops::add(ops::multiply(follows, common),
                                 ops::multiply(ops::affine(follows, -1, 1), own.to(DType::f32).view(by_sequence)));
  return chosen.view(own.shape()).to(DType::boolean);
}

Row dynamic_row(const Case& c) {
  const NoGradGuard no_gradients;
  const moe::DynamicFeedForward layer = random_layer(c.experts);
  const Variable x(random_tensor({kTokens, kWidth}));
  const Tensor mask = mask_of(c);
  const Tensor up = random_tensor({kHidden, kWidth}), bias = random_tensor({kHidden});
  const Tensor down = random_tensor({kWidth, kHidden});
  layer.run(x, mask);
  reset_peak_memory(Device::cuda());
  Row row{.ms = median_ms([&] { layer.run(x, mask); })};
  row.peak_mib = peak_mib();
  row.dense_ms = median_ms([&] { ops::linear(ops::linear(x.data(), up, bias, {}, ops::Activation::relu), down); });
  row.flops = 4.0 * static_cast<double>(kTokens * kWidth * kHidden) * c.percent / 100.0;
  row.tokens = static_cast<double>(kTokens);
  return row;
}

Row router_row(std::int64_t experts) {
  const NoGradGuard no_gradients;
  moe::DynamicFeedForward layer = random_layer(experts);
  const Variable x(random_tensor({kTokens, kWidth}));
  const moe::Gate gate{.mode = moe::GateMode::dynk_max, .tau = 0.5};
  return {.ms = median_ms([&] { ops::expert_mask(layer.router().forward(x).data(), gate); }),
          .tokens = static_cast<double>(kTokens)};
}

}  // namespace

std::vector<Benchmark> dynamic_feed_forward_benchmarks() {
  std::vector<Benchmark> all;
  for (const std::int64_t experts : {24, 128, 512, 768}) {
    const std::string size = std::to_string(experts) + "x" + std::to_string(kHidden / experts);
    for (const int percent : {100, 75, 50, 25, 10}) {
      const std::string name = size + "_" + std::to_string(percent);
      for (const auto& [suffix, mask] : {std::pair{"_random", Mask::random}, std::pair{"_sequences", Mask::sequences},
                                         std::pair{"_skewed", Mask::skewed}})
        all.push_back({"d2dmoe_" + name + suffix, [=, mask = mask] { return dynamic_row({experts, percent, mask}); }});
    }
    all.push_back({"d2dmoe_" + size + "_router", [experts] { return router_row(experts); }});
  }
  return all;
}

}  // namespace switchyard::bench
