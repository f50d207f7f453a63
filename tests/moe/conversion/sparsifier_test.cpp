#include "moe/conversion/sparsifier.h"

#include <gtest/gtest.h>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using ops::Activation;
using testing::random_tensor;

constexpr std::int64_t kWidth = 5, kNeurons = 7;

struct Layers : nn::Module {
  explicit Layers(Activation activation, bool gated = false)
      : first({.width = kWidth, .hidden = kNeurons, .activation = activation, .gated = gated, .bias = true}),
        second({.width = kWidth, .hidden = kNeurons, .activation = activation, .gated = gated, .bias = true}) {
    register_module("first", first);
    register_module("second", second);
    to(DType::f64);
  }
  nn::FeedForward first, second;
};

Variable input() { return Variable(random_tensor({2, 3, kWidth}, 1)); }

/// What goes into the activation.
Variable sums_of(const nn::FeedForward& layer) {
  const nn::Linear& linear_map = layer.gate() ? *layer.gate() : layer.up();
  return linear(input(), linear_map.weight(), linear_map.bias());
}

TEST(Sparsifier, AddsTheMeanPenaltyOfTheLayers) {
  for (const Activation activation : {Activation::relu, Activation::gelu})
    for (const bool gated : {false, true})
      for (const SparsityMeasure measure : {SparsityMeasure::square_hoyer, SparsityMeasure::l1}) {
        Layers layers(activation, gated);
        Sparsifier sparsifier(layers.named_modules_of<nn::FeedForward>(), {measure, -0.5});
        sparsifier.set_weight(0.3);
        for (nn::FeedForward* layer : {&layers.first, &layers.second}) {
          const Variable sums = sums_of(*layer);
          const Variable penalised = activation == Activation::relu ? relu(sums) : displaced(sums, -0.5);
          const Variable expected = sparsity_penalty(measure, penalised) * 0.15;
          expected.backward();
          const Variable& bias = (layer->gate() ? *layer->gate() : layer->up()).bias();
          const Tensor expected_gradient = bias.grad().clone();
          layers.zero_grad();
          const Variable penalty = layer->forward(input()).regularizer;
          EXPECT_CLOSE(penalty.data(), expected.data(), 1e-12);
          penalty.backward();
          EXPECT_CLOSE(bias.grad(), expected_gradient, 1e-12);
        }
      }
}

TEST(Sparsifier, LeavesTheOutputAsItIs) {
  for (const Activation activation : {Activation::relu, Activation::gelu}) {
    Layers layers(activation);
    const Tensor before = layers.first.forward(input()).output.data();
    Sparsifier sparsifier(layers.named_modules_of<nn::FeedForward>(), {});
    sparsifier.set_weight(1);
    EXPECT_CLOSE(layers.first.forward(input()).output.data(), before, 1e-14);
  }
}

TEST(Sparsifier, CountsInEvaluationOnly) {
  Layers layers(Activation::relu);
  Sparsifier sparsifier(layers.named_modules_of<nn::FeedForward>(), {});
  layers.first.forward(input());
  EXPECT_ERROR(sparsifier.take_summaries(), "no activations were added");
  layers.eval();
  sparsifier.set_weight(1);
  EXPECT_FALSE(layers.first.forward(input()).regularizer.defined());
  layers.second.forward(input());
  const std::vector<LayerSparsity> summaries = sparsifier.take_summaries();
  ASSERT_EQ(summaries.size(), 2u);
  EXPECT_EQ(summaries[0].name, "first");
  EXPECT_EQ(summaries[1].name, "second");
  for (const auto& [summary, layer] :
       {std::pair{summaries[0].summary, &layers.first}, {summaries[1].summary, &layers.second}}) {
    double zeros = 0;
    for (const double sum : sums_of(*layer).data().to_vector<double>()) zeros += sum <= 0;
    EXPECT_EQ(summary.values, 6.0 * kNeurons);
    EXPECT_DOUBLE_EQ(summary.zero, zeros / (6 * kNeurons));
  }
}

// bf16 computes with neurons added to fill up to a multiple of eight; they do not count.
TEST(Sparsifier, PaddingDoesNotCount) {
  Layers layers(Activation::relu);
  layers.to(DType::bf16);
  layers.eval();
  Sparsifier sparsifier(layers.named_modules_of<nn::FeedForward>(), {});
  const Variable x(input().data().to(DType::bf16));
  layers.first.forward(x);
  layers.second.forward(x);
  EXPECT_EQ(sparsifier.take_summaries()[0].summary.values, 6.0 * kNeurons);
}

TEST(Sparsifier, LetsGoAtItsEnd) {
  Layers layers(Activation::relu);
  {
    Sparsifier sparsifier(layers.named_modules_of<nn::FeedForward>(), {});
    sparsifier.set_weight(1);
    EXPECT_TRUE(layers.first.forward(input()).regularizer.defined());
  }
  EXPECT_FALSE(layers.first.forward(input()).regularizer.defined());
}

}  // namespace
}  // namespace switchyard::moe
