#include "core/ops/masked_feed_forward.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "tests/support/close.h"
#include "tests/support/device.h"
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

struct Sizes {
  std::int64_t tokens, experts, width, neurons, outputs;
};

/// An ungated layer with biases, its operands and what masked_feed_forward adds at the end.
struct Case {
  ExpertLayer layer;
  Tensor x, mask, bias;

  /// A token has chosen about that share of the experts.
  Case(const Sizes& sizes, DType dtype, double share) {
    const auto [tokens, experts, width, neurons, outputs] = sizes;
    layer.up = random_tensor({experts, width, neurons}, 1, dtype);
    layer.up_bias = random_tensor({experts, neurons}, 2, dtype);
    layer.down = random_tensor({experts, neurons, outputs}, 3, dtype);
    x = random_tensor({tokens, width}, 4, dtype);
    mask = ops::affine(random_tensor({tokens, experts}, 5, DType::f64, 0, 1), -1, share);
    mask = ops::unary(ops::Unary::relu, mask).to(DType::boolean);
    mask.select(0, 0).fill(tokens == 1);                  // no expert; the only token of a case has all
    mask.select(0, tokens - 1).fill(1);                   // all
    if (tokens > 1) mask.select(1, experts - 1).fill(0);  // an expert that nobody has
    bias = random_tensor({outputs}, 6, dtype);
  }
  Tensor run(const ExpertLayer& with) const {
    return ops::masked_feed_forward(x, with, mask, Activation::relu, bias, x.size(1) == bias.size(0));
  }
};

/// By plain loops in f64, with relu.
Tensor naive(const Case& c) {
  const auto up = c.layer.up.to_vector<double>(), up_bias = c.layer.up_bias.to_vector<double>(),
             down = c.layer.down.to_vector<double>(), x = c.x.to_vector<double>(), bias = c.bias.to_vector<double>();
  const auto mask = c.mask.to_vector<double>();
  const auto tokens = static_cast<std::size_t>(c.x.size(0)), experts = static_cast<std::size_t>(c.layer.experts()),
             width = static_cast<std::size_t>(c.x.size(1)), neurons = static_cast<std::size_t>(c.layer.expert_width()),
             outputs = bias.size();
  std::vector<double> y;
  for (std::size_t n = 0; n < tokens; ++n) {
    std::vector<double> row = bias;
    for (std::size_t m = 0; outputs == width && m < outputs; ++m) row[m] += x[n * width + m];
    for (std::size_t e = 0; e < experts; ++e)
      for (std::size_t s = 0; mask[n * experts + e] != 0 && s < neurons; ++s) {
        double sum = up_bias[e * neurons + s];
        for (std::size_t d = 0; d < width; ++d) sum += x[n * width + d] * up[(e * width + d) * neurons + s];
        for (std::size_t m = 0; m < outputs; ++m) row[m] += std::max(sum, 0.0) * down[(e * neurons + s) * outputs + m];
      }
    y.insert(y.end(), row.begin(), row.end());
  }
  return Tensor::from(y, {c.x.size(0), c.bias.size(0)});
}

// From one token to more than a chunk of them, one neuron to more than a group; widths that fill no register and more
// than one block of columns.
const Sizes kSizes[] = {{1, 9, 37, 5, 70},   {2, 9, 33, 4, 130},  {1, 3, 8, 130, 150},  {16, 3, 40, 100, 40},
                        {7, 11, 16, 1, 19},  {40, 6, 64, 24, 64}, {300, 13, 19, 3, 21}, {33, 5, 130, 10, 256},
                        {70, 40, 24, 6, 24}, {3, 20, 96, 2, 96},  {20, 3, 17, 65, 35}};

TEST(MaskedFeedForward, EqualsPlainLoopsInAllSizes) {
  for (const Sizes& sizes : kSizes)
    for (const double share : {0.25, 0.7})
      for (const DType dtype : testing::kFloatingDTypes) {
        const Case c(sizes, dtype, share);
        const Tensor expected = naive(c);
        const auto name = ::testing::Message() << sizes.tokens << " tokens, " << sizes.neurons << " neurons, " << share;
        EXPECT_CLOSE(c.run(c.layer), expected, 2 * testing::tolerance(dtype)) << name;
        EXPECT_CLOSE(c.run(ops::by_neuron(c.layer)), expected, 2 * testing::tolerance(dtype)) << name;
      }
}

TEST(MaskedFeedForward, DoesNotDependOnTheNumberOfThreads) {
  SKIP_ON_GPU("the host's threads do not work there");
  const int threads = omp_get_max_threads();
  for (const Sizes& sizes : {Sizes{1, 60, 256, 24, 700}, Sizes{20, 60, 256, 4, 300}, Sizes{600, 30, 64, 4, 200}}) {
    const Case c(sizes, DType::f32, 0.25);
    std::vector<std::vector<float>> results;
    for (const int count : {1, 2, 3}) {
      omp_set_num_threads(count);
      results.push_back(c.run(c.layer).to_vector<float>());
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
  }
  omp_set_num_threads(threads);
}

// A token's result is the same whichever tokens come with it.
TEST(MaskedFeedForward, OfEachTokenAlone) {
  SKIP_ON_GPU("few and many tokens take different ways there");
  const Case c({40, 12, 64, 24, 64}, DType::f64, 0.25);
  const Tensor together = c.run(c.layer);
  for (const std::int64_t n : {0, 1, 17, 39}) {
    Case alone = c;
    alone.x = c.x.slice(0, n, n + 1);
    alone.mask = c.mask.slice(0, n, n + 1);
    EXPECT_CLOSE(alone.run(c.layer), together.slice(0, n, n + 1), 1e-12);
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
  EXPECT_ERROR(ops::masked_feed_forward(x, good, mask, Activation::relu, Tensor::zeros({2}, DType::f64)),
               "masked_feed_forward: the bias has shape [2], expected [5]");
  EXPECT_ERROR(ops::masked_feed_forward(x, good, mask, Activation::relu, {}, true),
               "masked_feed_forward: a residual connection needs as many outputs as inputs, got 5 and 6");
}

}  // namespace
}  // namespace switchyard
