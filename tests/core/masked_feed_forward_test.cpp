#include "core/ops/masked_feed_forward.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using ops::Activation;
using ops::ExpertLayer;
using testing::element;
using testing::random_tensor;
using testing::tensor_of;

constexpr std::int64_t kExperts = 4, kWidth = 6, kNeurons = 3, kOutput = 5;

ExpertLayer layer_with(bool gated, bool biased) {
  const auto bias = [&](unsigned seed) { return biased ? random_tensor({kExperts, kNeurons}, seed) : Tensor{}; };
  ExpertLayer layer;
  layer.up = random_tensor({kExperts, kWidth, kNeurons}, 1);
  layer.up_bias = bias(2);
  layer.down = random_tensor({kExperts, kNeurons, kOutput}, 3);
  if (!gated) return layer;
  layer.gate = random_tensor({kExperts, kWidth, kNeurons}, 4);
  layer.gate_bias = bias(5);
  return layer;
}

/// Neuron s of expert e for token n, by the formula in the header, with tanh.
double naive_neuron(const Tensor& x, const ExpertLayer& layer, std::int64_t n, std::int64_t e, std::int64_t s) {
  const auto dot = [&](const Tensor& weight, const Tensor& bias) {
    double sum = bias.defined() ? element(bias, {e, s}) : 0;
    for (std::int64_t d = 0; d < kWidth; ++d) sum += element(x, {n, d}) * element(weight, {e, d, s});
    return sum;
  };
  const double up = dot(layer.up, layer.up_bias);
  return layer.gate.defined() ? std::tanh(dot(layer.gate, layer.gate_bias)) * up : std::tanh(up);
}

Tensor naive(const Tensor& x, const ExpertLayer& layer, const Tensor& mask) {
  return tensor_of({x.size(0), kOutput}, [&](const Shape& at) {
    double sum = 0;
    for (std::int64_t e = 0; e < kExperts; ++e)
      for (std::int64_t s = 0; s < kNeurons && element(mask, {at[0], e}) != 0; ++s)
        sum += naive_neuron(x, layer, at[0], e, s) * element(layer.down, {e, s, at[1]});
    return sum;
  });
}

TEST(MaskedFeedForward, EqualsItsDefinition) {
  for (const std::int64_t tokens : {0, 1, 7, 40})
    for (const bool gated : {false, true})
      for (const bool biased : {false, true}) {
        const Tensor x = random_tensor({tokens, kWidth}, 6),
                     mask = random_tensor({tokens, kExperts}, 7, DType::boolean);
        const ExpertLayer layer = layer_with(gated, biased);
        EXPECT_CLOSE(ops::masked_feed_forward(x, layer, mask, Activation::tanh), naive(x, layer, mask), 1e-12);
      }
}

TEST(AllNeurons, EqualTheirDefinition) {
  for (const std::int64_t tokens : {0, 1, 7})
    for (const bool gated : {false, true})
      for (const bool biased : {false, true}) {
        const Tensor x = random_tensor({tokens, kWidth}, 6);
        const ExpertLayer layer = layer_with(gated, biased);
        const Tensor expected = tensor_of({tokens, kExperts * kNeurons}, [&](const Shape& at) {
          return naive_neuron(x, layer, at[0], at[1] / kNeurons, at[1] % kNeurons);
        });
        EXPECT_CLOSE(ops::all_neurons(x, layer, Activation::tanh), expected, 1e-12);
        EXPECT_CLOSE(ops::all_neurons(x, ops::by_neuron(layer), Activation::tanh), expected, 1e-12);
      }
}

// In f32 nothing but the operands has been rounded to bf16.
TEST(AllNeurons, OfBf16InF32) {
  const auto rounded = [](const Tensor& x) { return x.defined() ? x.to(DType::bf16) : x; };
  const ExpertLayer exact = layer_with(true, true);
  const ExpertLayer layer{rounded(exact.up), rounded(exact.up_bias), rounded(exact.gate), rounded(exact.gate_bias),
                          rounded(exact.down)};
  const Tensor x = rounded(random_tensor({7, kWidth}, 6));
  const Tensor expected = tensor_of({7, kExperts * kNeurons}, [&](const Shape& at) {
    return naive_neuron(x, layer, at[0], at[1] / kNeurons, at[1] % kNeurons);
  });
  const Tensor neurons = ops::all_neurons(x, layer, Activation::tanh, DType::f32);
  EXPECT_EQ(neurons.dtype(), DType::f32);
  EXPECT_CLOSE(neurons, expected, 1e-5);
  EXPECT_EQ(ops::all_neurons(x, layer, Activation::tanh).dtype(), DType::bf16);
}

TEST(AllNeurons, RefuseWhatDoesNotFit) {
  EXPECT_ERROR(ops::all_neurons(random_tensor({2, kWidth + 1}, 6), layer_with(false, false), Activation::relu),
               "all_neurons: up has shape [4, 6, 3], expected [4, 7, 3]");
}

TEST(MaskedFeedForward, RefusesWhatDoesNotFit) {
  const Tensor x = random_tensor({2, kWidth}, 6), mask = Tensor::zeros({2, kExperts}, DType::boolean);
  const ExpertLayer good = layer_with(true, true);
  const auto run = [&](const ExpertLayer& layer) { ops::masked_feed_forward(x, layer, mask, Activation::relu); };
  ExpertLayer layer = good;
  layer.gate = {};
  EXPECT_ERROR(run(layer), "masked_feed_forward: gate_bias is given without a gate");
  layer = good;
  layer.down = random_tensor({kExperts, 2, kOutput}, 1);
  EXPECT_ERROR(run(layer), "masked_feed_forward: down has shape [4, 2, 5], expected [4, 3, 5]");
  layer = good;
  layer.up_bias = Tensor::zeros({kExperts, kNeurons});
  EXPECT_ERROR(run(layer), "masked_feed_forward: up_bias is f32 on ");
  EXPECT_ERROR(ops::masked_feed_forward(x, good, Tensor::zeros({2, 3}, DType::boolean), Activation::relu),
               "masked_feed_forward: the mask must be bool [2, 4] on ");
}

}  // namespace
}  // namespace switchyard
