#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "autograd/ops/elementwise.h"
#include "nn/dropout.h"
#include "nn/embedding.h"
#include "nn/feed_forward.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "tests/nn/layer_gradcheck.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::nn {
namespace {

using switchyard::testing::element;
using switchyard::testing::random_tensor;
using switchyard::testing::tensor_of;

Variable input(const Shape& shape, std::uint64_t seed = 1) { return Variable(random_tensor(shape, seed), true); }

/// Makes a parameter that starts at 0 or 1 something a test can tell from that.
void randomize(const Module& module) {
  std::uint64_t seed = 100;
  for (const Variable& p : module.parameters()) p.set_data(random_tensor(p.shape(), seed++, p.dtype()));
}

TEST(Linear, is_a_product_and_a_bias) {
  Linear layer(5, 3);
  layer.to(DType::f64);
  randomize(layer);
  const Tensor x = random_tensor({2, 4, 5}, 1), w = layer.weight().data(), b = layer.bias().data();
  const Tensor expected = tensor_of({2, 4, 3}, [&](const Shape& i) {
    double sum = element(b, {i[2]});
    for (std::int64_t k = 0; k < 5; ++k) sum += element(x, {i[0], i[1], k}) * element(w, {i[2], k});
    return sum;
  });
  EXPECT_CLOSE(layer.forward(Variable(x)).data(), expected, 1e-14);
  EXPECT_EQ(Linear(5, 3, false).parameters().size(), 1u);
  EXPECT_ERROR(Linear(0, 3), "Linear: 0 inputs and 3 outputs");
}

TEST(Linear, passes_gradcheck) {
  for (const bool bias : {false, true}) {
    Linear layer(5, 3, bias);
    expect_gradients(layer, {input({2, 4, 5})}, [&](const Variables& in) { return layer.forward(in[0]); });
  }
}

TEST(Embedding, reads_rows_and_passes_gradcheck) {
  Embedding layer(6, 3, init::normal(1));
  const Tensor ids = Tensor::from<std::int64_t>({5, 0, 5, 2}, {2, 2});
  const Tensor y = layer.forward(ids).data();
  EXPECT_EQ(y.shape(), (Shape{2, 2, 3}));
  EXPECT_CLOSE(y.select(0, 1).select(0, 0), layer.weight().data().select(0, 5), 0.0);
  expect_gradients(layer, {}, [&](const Variables&) { return layer.forward(ids); });
}

TEST(Norm, normalises_and_passes_gradcheck) {
  for (const NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
    const auto norm = make_norm(kind, 7, 1e-5);
    for (const NamedParameter& p : norm->named_parameters()) EXPECT_FALSE(p.decays) << p.name;
    const Tensor x = random_tensor({4, 7}, 1, DType::f32, 2, 3);
    const Tensor y = norm->forward(Variable(x)).data();
    for (std::int64_t row = 0; row < 4; ++row) {
      double sum = 0, squares = 0;
      for (std::int64_t i = 0; i < 7; ++i) {
        sum += element(y, {row, i}) / 7;
        squares += element(y, {row, i}) * element(y, {row, i}) / 7;
      }
      EXPECT_NEAR(squares, 1, 1e-3);
      EXPECT_TRUE(kind == NormKind::rmsnorm || std::fabs(sum) < 1e-5) << sum;
    }
    norm->to(DType::f64);
    randomize(*norm);
    expect_gradients(*norm, {input({3, 2, 7})}, [&](const Variables& in) { return norm->forward(in[0]); });
  }
  EXPECT_ERROR(LayerNorm(0), "LayerNorm: width 0");
  EXPECT_ERROR(RMSNorm(0), "RMSNorm: width 0");
}

TEST(Dropout, acts_in_training_only) {
  Dropout layer(0.25);
  const Variable x(Tensor::ones({4000}));
  const auto y = layer.forward(x).data().to_vector<double>();
  double zeros = 0;
  for (const double v : y) {
    EXPECT_TRUE(v == 0 || std::fabs(v - 4.0 / 3) < 1e-6) << v;
    zeros += v == 0;
  }
  EXPECT_NEAR(zeros / 4000, 0.25, 0.03);
  layer.eval();
  EXPECT_CLOSE(layer.forward(x).data(), x.data(), 0.0);
  EXPECT_ERROR(Dropout(1), "Dropout: probability 1, expected 0 <= p < 1");
  layer.train();
  expect_gradients(layer, {input({5, 5})}, [&](const Variables& in) { return layer.forward(in[0]); });
}

double activation_of(ops::Activation a, double x) {
  switch (a) {
    case ops::Activation::relu: return std::max(x, 0.0);
    case ops::Activation::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case ops::Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ops::Activation::silu: return x / (1 + std::exp(-x));
    default: return x;
  }
}

/// x w^T + b by double loops; b may be undefined.
Tensor naive_linear(const Tensor& x, const Tensor& w, const Tensor& b) {
  return tensor_of({x.size(0), w.size(0)}, [&](const Shape& i) {
    double sum = b.defined() ? element(b, {i[1]}) : 0;
    for (std::int64_t k = 0; k < w.size(1); ++k) sum += element(x, {i[0], k}) * element(w, {i[1], k});
    return sum;
  });
}

TEST(FeedForward, equals_the_formula_in_all_forms) {
  using ops::Activation;
  for (const Activation activation : {Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
    for (const bool gated : {false, true}) {
      for (const bool bias : {false, true}) {
        FeedForwardOptions options;
        options.width = 4;
        options.hidden = 6;
        options.activation = activation;
        options.gated = gated;
        options.bias = bias;
        FeedForward layer(options);
        layer.to(DType::f64);
        randomize(layer);
        std::map<std::string, Tensor> p;
        for (const NamedParameter& q : layer.named_parameters()) p[q.name] = q.variable.data();
        EXPECT_EQ(p.size(), (gated ? 3u : 2u) * (bias ? 2u : 1u));
        const Tensor x = random_tensor({5, 4}, 1);
        const Tensor up = naive_linear(x, p.at("up.weight"), p["up.bias"]);
        const Tensor gate = gated ? naive_linear(x, p.at("gate.weight"), p["gate.bias"]) : Tensor{};
        const Tensor hidden = tensor_of({5, 6}, [&](const Shape& i) {
          return gated ? activation_of(activation, element(gate, i)) * element(up, i)
                       : activation_of(activation, element(up, i));
        });
        const LayerOutput out = layer.forward(Variable(x));
        EXPECT_CLOSE(out.output.data(), naive_linear(hidden, p.at("down.weight"), p["down.bias"]), 1e-13);
        EXPECT_FALSE(out.regularizer.defined());
        expect_gradients(layer, {input({2, 2, 4})}, [&](const Variables& in) { return layer.forward(in[0]).output; });
      }
    }
  }
}

TEST(FeedForward, may_have_other_outputs_and_a_residual_connection) {
  FeedForwardOptions options;
  options.width = 4;
  options.hidden = 6;
  options.outputs = 3;
  FeedForward narrow(options);
  const Tensor x = random_tensor({5, 4}, 1, DType::f32);
  EXPECT_EQ(narrow.down().weight().shape(), (Shape{3, 6}));
  EXPECT_EQ(narrow.forward(Variable(x)).output.shape(), (Shape{5, 3}));

  options.outputs = 0;
  FeedForward plain(options);
  options.residual = true;
  FeedForward residual(options);
  for (std::size_t i = 0; i < plain.parameters().size(); ++i)
    residual.parameters()[i].data().copy_from(plain.parameters()[i].data());
  EXPECT_CLOSE(residual.forward(Variable(x)).output.data(), ops::add(x, plain.forward(Variable(x)).output.data()),
               1e-6);
}

TEST(FeedForward, hidden_width_defaults_to_four_times_the_width) {
  FeedForwardOptions options;
  options.width = 4;
  EXPECT_EQ(FeedForward(options).parameter_count(), 2 * 4 * 16);
}

}  // namespace
}  // namespace switchyard::nn
