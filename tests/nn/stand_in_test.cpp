// Layers that stand in for the projections of multi-head attention.

#include <gtest/gtest.h>

#include <set>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "core/ops/index.h"
#include "core/ops/matmul.h"
#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "tests/nn/layer_gradcheck.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::nn {
namespace {

using switchyard::testing::random_tensor;

constexpr std::int64_t kWidth = 6, kHeads = 2, kHeadWidth = 4;

std::unique_ptr<MultiHeadAttention> make(PositionKind position, bool bias = true) {
  MultiHeadAttentionOptions options;
  options.width = kWidth;
  options.heads = kHeads;
  options.head_width = kHeadWidth;
  options.position = {position, 1, 100};
  options.bias = bias;
  Generator generator(4);
  auto layer = std::make_unique<MultiHeadAttention>(options, generator);
  layer->to(DType::f64);
  for (const NamedParameter& p : layer->named_parameters())
    p.variable.data().copy_from(random_tensor(p.variable.shape(), p.name.size()));
  return layer;
}

/// relu(z) - relu(-z) = z: the linear map as a perceptron with two neurons for each of its outputs.
std::unique_ptr<FeedForward> as_perceptron(const Linear& linear) {
  const Tensor weight = linear.weight().data(), bias = linear.bias().data();
  FeedForwardOptions options;
  options.width = weight.size(1);
  options.outputs = weight.size(0);
  options.hidden = 2 * options.outputs;
  options.bias = true;
  auto layer = std::make_unique<FeedForward>(options);
  layer->to(weight.dtype());
  const auto both_signs = [](const Tensor& x) { return ops::concat({x, ops::affine(x, -1)}, 0); };
  layer->up().weight().data().copy_from(both_signs(weight));
  layer->up().bias().data().copy_from(both_signs(bias));
  const Tensor down = layer->down().weight().data();
  down.fill(0);
  for (std::int64_t i = 0; i < options.outputs; ++i) {
    switchyard::testing::set_element(down, {i, i}, 1);
    switchyard::testing::set_element(down, {i, options.outputs + i}, -1);
  }
  return layer;
}

void replace_all(MultiHeadAttention& attention) {
  for (const ProjectionKind kind : kProjectionKinds)
    attention.set_stand_in(kind, as_perceptron(*attention.linear(kind)));
}

Tensor decoded_one_by_one(MultiHeadAttention& attention, const Tensor& x) {
  NoGradGuard no_grad;
  KeyValueCache cache;
  std::vector<Tensor> parts;
  for (std::int64_t t = 0; t < x.size(1); ++t) {
    AttentionArguments arguments;
    arguments.cache = &cache;
    parts.push_back(attention.forward(Variable(x.slice(1, t, t + 1)), arguments).output.data());
  }
  return ops::concat(parts, 1);
}

TEST(StandIn, of_the_same_function_changes_nothing) {
  const Tensor x = random_tensor({2, 5, kWidth}, 1), longer = random_tensor({2, 8, kWidth}, 2);
  for (const PositionKind position : {PositionKind::none, PositionKind::rope, PositionKind::xl}) {
    const auto attention = make(position);
    AttentionArguments past;
    past.key_source = Variable(longer);
    const Tensor plain = attention->forward(Variable(x)).output.data();
    const Tensor with_past = attention->forward(Variable(x), past).output.data();
    replace_all(*attention);
    EXPECT_CLOSE(attention->forward(Variable(x)).output.data(), plain, 1e-13);
    EXPECT_CLOSE(attention->forward(Variable(x), past).output.data(), with_past, 1e-13);
    EXPECT_CLOSE(decoded_one_by_one(*attention, x), plain, 1e-13);
  }
}

TEST(StandIn, takes_the_name_the_mode_and_the_place_of_the_projection) {
  const auto attention = make(PositionKind::rope);
  attention->eval();
  attention->set_stand_in(ProjectionKind::value, as_perceptron(*attention->linear(ProjectionKind::value)));
  EXPECT_EQ(attention->linear(ProjectionKind::value), nullptr);
  ASSERT_NE(attention->stand_in(ProjectionKind::value), nullptr);
  EXPECT_FALSE(attention->stand_in(ProjectionKind::value)->training());
  EXPECT_NE(attention->linear(ProjectionKind::query), nullptr);
  EXPECT_EQ(attention->stand_in(ProjectionKind::query), nullptr);
  std::set<std::string> names;
  for (const NamedParameter& p : attention->named_parameters()) names.insert(p.name);
  EXPECT_EQ(names, (std::set<std::string>{"query.weight", "query.bias", "key.weight", "key.bias", "value.up.weight",
                                          "value.up.bias", "value.down.weight", "value.down.bias", "output.weight",
                                          "output.bias"}));
}

TEST(StandIn, passes_gradcheck) {
  const auto attention = make(PositionKind::rope);
  replace_all(*attention);
  expect_gradients(*attention, {Variable(random_tensor({1, 3, kWidth}, 1), true)},
                   [&](const Variables& in) { return attention->forward(in[0]).output; });
}

/// Gives back its input, doubled, and a regulariser.
class Doubling : public FeedForwardLayer {
 public:
  LayerOutput forward(const Variable& x) override { return {x * 2.0, Variable(Tensor::full({}, 0.25, DType::f64))}; }
};

TEST(StandIn, regularisers_are_summed) {
  MultiHeadAttentionOptions options;
  options.width = kWidth;
  MultiHeadAttention attention(options);
  attention.to(DType::f64);
  const Variable x(random_tensor({2, 3, kWidth}, 1));
  EXPECT_FALSE(attention.forward(x).regularizer.defined());
  attention.set_stand_in(ProjectionKind::key, std::make_unique<Doubling>());
  attention.set_stand_in(ProjectionKind::output, std::make_unique<Doubling>());
  EXPECT_EQ(attention.forward(x).regularizer.item<double>(), 0.5);
}

TEST(StandIn, errors) {
  const auto attention = make(PositionKind::rope);
  EXPECT_ERROR(attention->set_stand_in(ProjectionKind::key, nullptr), "the stand-in for key is missing");
  attention->set_stand_in(ProjectionKind::key, std::make_unique<Doubling>());
  EXPECT_ERROR(attention->forward(Variable(random_tensor({2, 3, kWidth}, 1))),
               "MultiHeadAttention: the stand-in for key gives [2, 3, 6], expected [batch, tokens, 8]");
  FeedForwardOptions options;
  options.width = 4;
  options.outputs = 6;
  options.residual = true;
  EXPECT_ERROR(FeedForward(options),
               "FeedForward: a residual connection needs as many outputs as inputs, got 4 inputs and 6 outputs");
}

TEST(ProjectionObserver, sees_inputs_and_outputs_before_positions_are_put_in) {
  const auto attention = make(PositionKind::rope, false);
  const Tensor x = random_tensor({2, 3, kWidth}, 1), keys = random_tensor({2, 5, kWidth}, 2);
  std::set<ProjectionKind> seen;
  attention->set_projection_observer([&](ProjectionKind kind, const Variable& input, const Variable& output) {
    EXPECT_TRUE(seen.insert(kind).second);
    if (kind != ProjectionKind::output) {
      EXPECT_CLOSE(input.data(), kind == ProjectionKind::query ? x : keys, 0.0);
    }
    const Tensor weight = attention->linear(kind)->weight().data();
    EXPECT_CLOSE(output.data(), ops::matmul(input.data(), weight.transpose(0, 1)), 1e-13);
  });
  AttentionArguments arguments;
  arguments.key_source = Variable(keys);
  const Tensor y = attention->forward(Variable(x), arguments).output.data();
  EXPECT_EQ(seen.size(), 4u);
  attention->set_projection_observer({});
  EXPECT_CLOSE(attention->forward(Variable(x), arguments).output.data(), y, 0.0);
  EXPECT_EQ(seen.size(), 4u);
}

}  // namespace
}  // namespace switchyard::nn
