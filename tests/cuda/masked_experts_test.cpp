// Expert products under a mask (dynamic-k): any number of experts for each token, in sizes that take each of the ways
// that a GPU has for them.

#include <gtest/gtest.h>

#include <limits>

#include "core/graph.h"
#include "core/kernels/masked_feed_forward.h"
#include "core/ops/expert_matmul.h"
#include "core/ops/matmul.h"
#include "core/ops/random.h"
#include "core/ops/routed_feed_forward.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;
using ops::Rows;

struct Case {
  std::int64_t tokens, experts, neurons, width;
};

/// About `share` of the experts for every token; all for the first and, where there are three, none for the last.
Tensor mask_of(const Case& c, double share) {
  Generator generator(5);
  const Tensor mask = ops::bernoulli({c.tokens, c.experts}, generator.next(c.tokens * c.experts), share);
  mask.slice(0, 0, 1).fill(1);
  if (c.tokens > 2) mask.slice(0, c.tokens - 1, c.tokens).fill(0);
  return mask;
}

const Case kCases[] = {{1, 24, 128, 768},  {2, 5, 64, 8},      {127, 3, 64, 40},    {128, 3, 64, 264},
                       {700, 8, 128, 136}, {3000, 24, 64, 72}, {9000, 24, 64, 264}, {1000, 40, 192, 96},
                       {300, 31, 24, 100}, {200, 33, 6, 64},   {150, 50, 4, 128},   {40, 300, 4, 32},
                       {130, 300, 64, 16}};

TEST(CudaMaskedExperts, ProductsOfTokens) {
  SKIP_WITHOUT_GPU();
  for (const Case& c : kCases)
    for (const DType dtype : {DType::bf16, DType::f32}) {
      const auto up = [](const Tensors& in) {
        const auto plan = ops::routing_plan_from_mask(in[3]);
        const Tensor y = ops::expert_matmul(in[0], in[1], in[2], {}, plan, {Rows::token, Rows::pair, ops::Unary::relu});
        return Tensors{y.slice(0, 0, plan.expert_offsets.to_vector<std::int32_t>().back())};
      };
      expect_parity(
          up,
          {random_tensor({c.tokens, c.width}, 1, dtype), random_tensor({c.experts, c.width, c.neurons}, 2, dtype),
           random_tensor({c.experts, c.neurons}, 3, dtype), mask_of(c, 0.3)},
          dtype, "tokens to pairs");
    }
}

TEST(CudaMaskedExperts, SumsOverTheExpertsOfATokenReadNoRowWithoutAPair) {
  SKIP_WITHOUT_GPU();
  for (const Case& c : kCases)
    for (const double share : {0.0, 0.25, 1.0})
      for (const bool transposed : {false, true}) {
        const Tensor mask = mask_of(c, share);
        const auto pairs = ops::routing_plan_from_mask(mask).expert_offsets.to_vector<std::int32_t>().back();
        const Tensor x = random_tensor({c.tokens * c.experts, c.neurons}, 1, DType::bf16);
        x.slice(0, pairs, x.size(0)).fill(std::numeric_limits<double>::quiet_NaN());
        const auto down = [&](const Tensors& in) {
          const Tensor weight = transposed ? in[1].transpose(1, 2) : in[1];
          return Tensors{
              ops::expert_matmul(in[0], weight, {}, {}, ops::routing_plan_from_mask(in[2]), {Rows::pair, Rows::token})};
        };
        const Shape shape = transposed ? Shape{c.experts, c.width, c.neurons} : Shape{c.experts, c.neurons, c.width};
        expect_parity(down, {x, random_tensor(shape, 2, DType::bf16), mask}, DType::bf16,
                      transposed ? "pairs to tokens, transposed weight" : "pairs to tokens");
      }
}

/// About `share` of the experts; the first half of the tokens wants none of the later experts.
Tensor uneven_mask(const Case& c, double share) {
  const Tensor mask = mask_of(c, share);
  mask.slice(0, 0, c.tokens / 2).slice(1, c.experts / 3, c.experts).fill(0);
  return mask;
}

/// ops::masked_feed_forward; on a GPU by blocks, whatever the number of tokens. up is given as [E, S, D].
Tensor by_blocks(const Tensor& x, ops::ExpertLayer layer, const Tensor& mask, ops::Activation activation) {
  layer.up = layer.up.transpose(1, 2);
  if (!x.device().is_cuda()) return ops::masked_feed_forward(x, layer, mask, activation);
  const std::int64_t neurons = layer.experts() * layer.expert_width();
  const Tensor hidden = Tensor::empty({x.size(0), neurons}, x.dtype(), x.device());
  const Tensor y = Tensor::empty({x.size(0), layer.output_width()}, x.dtype(), x.device());
  cuda::block_feed_forward(x, layer, mask, activation, hidden, y);
  return y;
}

TEST(CudaMaskedExperts, SmallExpertsByBlocks) {
  SKIP_WITHOUT_GPU();
  const Case cases[] = {{100, 9, 8, 16},    {300, 300, 4, 32},    {1001, 130, 24, 72},
                        {711, 1700, 6, 24}, {1193, 128, 40, 104}, {2048, 36, 6, 64}};
  for (const Case& c : cases)
    for (const double share : {0.0, 0.02, 0.4})
      for (const bool plain : {false, true}) {
        const auto activation = plain ? ops::Activation::gelu : ops::Activation::relu;
        const Tensor up = random_tensor({c.experts, c.neurons, c.width}, 2, DType::bf16);
        const Tensor x = random_tensor({c.tokens, c.width}, 1, DType::bf16).to(Device::cuda());
        if (!cuda::block_feed_forward_fits(x, {up.transpose(1, 2), {}, {}, {}, up}, activation)) GTEST_SKIP();
        const auto layer = [&](const Tensors& in) {
          return Tensors{by_blocks(in[0], {in[1], plain ? Tensor{} : in[2], {}, {}, in[3]}, in[4], activation)};
        };
        expect_parity(layer,
                      {x.to(Device::cpu()), up, random_tensor({c.experts, c.neurons}, 3, DType::bf16),
                       random_tensor({c.experts, c.neurons, c.width + 8}, 4, DType::bf16), uneven_mask(c, share)},
                      DType::bf16, "masked_feed_forward by blocks");
      }
}

TEST(CudaMaskedExperts, WholeLayers) {
  SKIP_WITHOUT_GPU();
  for (Case c : kCases)
    for (const std::int64_t tokens : {std::int64_t{1}, std::int64_t{8}, std::min<std::int64_t>(c.tokens, 700)})
      for (const DType dtype : kFloatingDTypes)
        for (const bool gated : {false, true}) {
          c.tokens = tokens;
          const Shape up = {c.experts, c.width, c.neurons}, bias = {c.experts, c.neurons};
          const auto layer = [gated](const Tensors& in) -> Tensors {
            ops::ExpertLayer weights{in[1], in[2], {}, {}, in[3]};
            if (gated) weights.gate = in[4], weights.gate_bias = in[5];
            return {ops::masked_feed_forward(in[0], weights, in[6], ops::Activation::gelu)};
          };
          expect_parity(layer,
                        {random_tensor({tokens, c.width}, 1, dtype), random_tensor(up, 2, dtype),
                         random_tensor(bias, 3, dtype), random_tensor({c.experts, c.neurons, c.width}, 4, dtype),
                         random_tensor(up, 5, dtype), random_tensor(bias, 6, dtype), mask_of(c, 0.3)},
                        dtype, "masked_feed_forward");
        }
}

/// Whole numbers in -limit .. limit: sums of their products are exact, so that both devices choose the same experts.
Tensor whole_numbers(const Shape& shape, unsigned seed, std::int64_t limit, DType dtype) {
  Generator generator(seed);
  const double most = static_cast<double>(limit);
  const Tensor drawn = ops::uniform(shape, generator.next(shape.numel()), -most - 1, most + 1, DType::f64);
  return drawn.to(DType::i64).to(dtype);
}

TEST(CudaMaskedExperts, WholeLayersChosenByScores) {
  SKIP_WITHOUT_GPU();
  using ops::GateMode;
  struct Sizes {
    std::int64_t experts, neurons, width, hidden;
  };
  for (const Sizes& c :
       {Sizes{24, 128, 256, 128}, {128, 24, 256, 128}, {700, 4, 96, 64}, {5, 64, 8, 20}, {3, 10, 41, 7}})
    for (const DType dtype : kFloatingDTypes) {
      const Shape shape = {c.experts, c.neurons, c.width};
      const Tensor up = random_tensor(shape, 1, dtype), down = random_tensor(shape, 2, dtype);
      const Tensor bias = random_tensor({c.experts, c.neurons}, 3, dtype),
                   last_bias = random_tensor({c.width}, 4, dtype);
      const Tensor scores = whole_numbers({c.experts, c.hidden}, 5, 2, dtype);
      const Tensor scores_bias = whole_numbers({c.experts}, 6, 5, dtype);
      for (const ops::Gate& gate :
           {ops::Gate{GateMode::topk, 3}, {GateMode::dynk, 1, 0.37}, {GateMode::dynk_max, 1, 0.5}})
        for (const std::int64_t tokens : {1, 16}) {
          const auto layer = [&](const Tensors& in) -> Tensors {
            const ops::ExpertRouter router{in[1], in[6], in[7], ops::Activation::abs, gate};
            return {ops::routed_feed_forward(in[0], router, {in[2].transpose(1, 2), in[3], {}, {}, in[4]},
                                             ops::Activation::relu, in[5], true)};
          };
          expect_parity(layer,
                        {random_tensor({tokens, c.width}, 7, dtype), whole_numbers({tokens, c.hidden}, 8, 3, dtype), up,
                         bias, down, last_bias, scores, scores_bias},
                        dtype, "routed_feed_forward");
        }
    }
}

TEST(CudaMaskedExperts, DecodingTokensRunAnExpertWhateverTheirScores) {
  SKIP_WITHOUT_GPU();
  const Tensor up = random_tensor({20, 8, 16}, 1, DType::f32), down = random_tensor({20, 8, 16}, 2, DType::f32);
  for (const double score : {-1000.0, std::numeric_limits<double>::quiet_NaN()}) {  // of all experts, of one
    const Tensor bias = Tensor::full({20}, -1000, DType::f32, Device::cpu());
    bias.slice(0, 7, 8).fill(score);
    const auto layer = [&](const Tensors& in) -> Tensors {
      const ops::ExpertRouter router{in[1], in[2], in[3], ops::Activation::identity, {ops::GateMode::dynk_max, 1, 0.5}};
      const ops::ExpertLayer experts{in[4].transpose(1, 2), {}, {}, {}, in[5]};
      return {ops::routed_feed_forward(in[0], router, experts, ops::Activation::relu)};
    };
    expect_parity(layer,
                  {random_tensor({3, 16}, 3, DType::f32), whole_numbers({3, 12}, 4, 3, DType::f32),
                   whole_numbers({20, 12}, 5, 2, DType::f32), bias, up, down},
                  DType::f32, "routed_feed_forward");
  }
}

// Their kernels begin before the ones that they depend on have ended, and must wait.
TEST(CudaMaskedExperts, ChainsOfDecodingKernelsWaitForEachOther) {
  SKIP_WITHOUT_GPU();
  constexpr std::int64_t kLayers = 40, kWidth = 256, kExperts = 16, kNeurons = 8, kHidden = 64;
  const auto drawn = [](const Shape& shape, unsigned seed) {
    return random_tensor(shape, seed, DType::f32).to(Device::cuda());
  };
  const Tensor up = drawn({kExperts, kNeurons, kWidth}, 1), down = drawn({kExperts, kNeurons, kWidth}, 2);
  const Tensor first = drawn({kHidden, kWidth}, 3), last = drawn({kExperts, kHidden}, 4), x = drawn({1, kWidth}, 5);
  const auto layer = [&](const Tensor& rows) {
    const Tensor hidden = ops::linear(rows, first, {}, {}, ops::Activation::relu);
    const ops::Gate gate{ops::GateMode::dynk_max, 1, 0.5};
    const ops::ExpertLayer experts{up.transpose(1, 2), {}, {}, {}, down};
    const Tensor y = ops::routed_feed_forward(rows, {hidden, last, {}, ops::Activation::abs, gate}, experts,
                                              ops::Activation::relu, {}, true);
    return ops::unary(ops::Unary::tanh, y);
  };
  // One layer after the other, with all other work done in between, and as one recording.
  Tensor expected = x.clone(), result;
  for (std::int64_t i = 0; i < kLayers; ++i) {
    expected = layer(expected);
    expected.to_vector<float>();
  }
  const DeviceGraph graph(Device::cuda(), [&] {
    result = x.clone();
    for (std::int64_t i = 0; i < kLayers; ++i) result = layer(result);
  });
  for (int replay = 0; replay < 20; ++replay) {
    graph.replay();
    ASSERT_EQ(result.to_vector<float>(), expected.to_vector<float>()) << "replay " << replay;
  }
}

}  // namespace
}  // namespace switchyard
