#include "moe/sigma_moe.h"

#include "autograd/gradcheck.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::element;
using testing::random_tensor;
using testing::tensor_of;

struct Sizes {
  std::int64_t batch, length, width, experts, expert_width, k, output_width;
};

SigmaMoeOptions options_for(const Sizes& s) {
  SigmaMoeOptions options;
  options.width = s.width;
  options.experts = s.experts;
  options.expert_width = s.expert_width;
  options.k = s.k;
  options.output_width = s.output_width;
  return options;
}

Tensor parameter(nn::Module& module, const std::string& name) {
  for (const auto& p : module.named_parameters())
    if (p.name == name) return p.variable.data();
  return {};
}

/// Random values instead of the zeros that biases start with.
void fill_biases(nn::Module& module) {
  for (const auto& p : module.named_parameters())
    if (p.name.ends_with("bias")) p.variable.set_data(random_tensor(p.variable.shape(), 77));
}

/// The formula, expert by expert, given the chosen experts and gates.
Tensor naive(SigmaMoe& layer, const Tensor& x, const Routing& routing) {
  const SigmaMoeOptions& o = layer.options();
  const Tensor keys = parameter(layer, "keys"), values = parameter(layer, "values");
  const Tensor bias = parameter(layer, "bias"), output_bias = parameter(layer, "output_bias");
  const auto act = [&](double z) {
    return ops::unary(o.activation, Tensor::scalar(z, DType::f64, Device::cpu())).item<double>();
  };
  return tensor_of({x.size(0), x.size(1), o.output_width}, [&](const Shape& at) {
    const std::int64_t n = at[0] * x.size(1) + at[1];
    double y = output_bias.defined() ? element(output_bias, {at[2]}) : 0;
    for (std::int64_t j = 0; j < o.k; ++j) {
      const auto e = static_cast<std::int64_t>(element(routing.indices, {n, 0, j}));
      for (std::int64_t f = 0; f < o.expert_width; ++f) {
        double z = bias.defined() ? element(bias, {e, f}) : 0;
        for (std::int64_t d = 0; d < o.width; ++d) z += element(x, {at[0], at[1], d}) * element(keys, {e, d, f});
        y += element(routing.gates.data(), {n, 0, j}) * act(z) * element(values, {e, f, at[2]});
      }
    }
    return y;
  });
}

const std::vector<Sizes> kSizes = {
    {2, 5, 6, 4, 3, 2, 6},  {1, 1, 4, 3, 5, 1, 4},  // one token
    {2, 3, 5, 3, 2, 3, 7},                          // k = E, another output width
    {1, 2, 4, 16, 3, 1, 4},                         // most experts empty
    {1, 9, 3, 1, 4, 1, 3},                          // one expert
};

TEST(SigmaMoe, equals_the_formula) {
  for (const Sizes& sizes : kSizes)
    for (const bool bias : {false, true})
      for (const auto activation : {ops::Activation::relu, ops::Activation::gelu, ops::Activation::silu}) {
        SigmaMoeOptions options = options_for(sizes);
        options.bias = bias;
        options.activation = activation;
        SigmaMoe layer(options);
        layer.to(DType::f64);
        fill_biases(layer);
        const Tensor x = random_tensor({sizes.batch, sizes.length, sizes.width}, 4);
        const Routing routing = layer.router().route(Variable(x));
        EXPECT_CLOSE(layer.forward(Variable(x)).output.data(), naive(layer, x, routing), 1e-12);
      }
}

TEST(SigmaMoe, gradients_of_every_mode) {
  int index = 0;
  for (const Sizes& sizes : kSizes)
    for (const auto selection :
         {SelectionKind::sigmoid, SelectionKind::softmax, SelectionKind::softmax_after_topk, SelectionKind::sinkmoid}) {
      // Balancing makes all experts of a lone token equal, so that rounding chooses among them.
      if (selection == SelectionKind::sinkmoid && sizes.length == 1) continue;
      SigmaMoeOptions options = options_for(sizes);
      options.selection = selection;
      options.bias = index % 2 == 0;
      options.activation = index % 3 == 0   ? ops::Activation::silu
                           : index % 3 == 1 ? ops::Activation::gelu_tanh
                                            : ops::Activation::tanh;
      options.entropy_regularizer = 0.3;
      ++index;
      SigmaMoe layer(options);
      layer.to(DType::f64);
      fill_biases(layer);
      Variables inputs = {Variable(random_tensor({sizes.batch, sizes.length, sizes.width}, 40), true)};
      for (const Variable& p : layer.parameters()) inputs.push_back(p);
      const auto result = gradcheck(
          [&](const Variables& in) {
            const nn::LayerOutput out = layer.forward(in[0]);
            return out.output + out.regularizer;
          },
          inputs);
      EXPECT_TRUE(result) << name_of(selection) << ", " << sizes.experts << " experts: " << result.message;
    }
}

TEST(SigmaMoe, an_expert_without_tokens_gets_a_zero_gradient) {
  SigmaMoe layer(options_for({1, 2, 4, 16, 3, 1, 4}));
  layer.forward(Variable(random_tensor({1, 2, 4}, 1, DType::f32))).output.backward(Tensor::ones({1, 2, 4}));
  for (const auto& p : layer.named_parameters()) {
    if (p.name != "keys" && p.name != "values") continue;
    int touched = 0;
    for (std::int64_t e = 0; e < 16; ++e) {
      double largest = 0;
      for (const double g : p.variable.grad().select(0, e).to_vector<double>())
        largest = std::max(largest, std::abs(g));
      touched += largest > 0;
      EXPECT_TRUE(std::isfinite(largest));
    }
    EXPECT_LE(touched, 2);
  }
}

TEST(SigmaMoe, expert_dropout_changes_nothing_in_evaluation) {
  SigmaMoeOptions options = options_for({2, 8, 6, 4, 3, 2, 6});
  options.expert_dropout = 0.5;
  SigmaMoe layer(options);
  const Variable x(random_tensor({2, 8, 6}, 9, DType::f32));
  layer.eval();
  const auto first = layer.forward(x).output.data().to_vector<double>();
  EXPECT_EQ(first, layer.forward(x).output.data().to_vector<double>());
  layer.train();
  EXPECT_NE(first, layer.forward(x).output.data().to_vector<double>());
}

TEST(SigmaMoe, weights_start_as_one_dense_layer_would) {
  SigmaMoeOptions options = options_for({1, 1, 256, 8, 64, 2, 256});
  options.init_scale = 0.5;
  SigmaMoe layer(options);
  const auto deviation = [&](const std::string& name) {
    double sum = 0;
    const auto values = parameter(layer, name).to_vector<double>();
    for (const double v : values) sum += v * v;
    return std::sqrt(sum / static_cast<double>(values.size()));
  };
  EXPECT_NEAR(deviation("keys"), 0.5 / 16, 3e-4);
  EXPECT_NEAR(deviation("values"), 0.5 / std::sqrt(512.0), 3e-4);
}

TEST(SigmaMoe, refuses_bad_sizes) {
  EXPECT_ERROR(SigmaMoe(options_for({1, 1, 4, 3, 0, 1, 4})), "SigmaMoe: expert_width is 0");
  EXPECT_ERROR(SigmaMoe(options_for({1, 1, 4, 3, 2, 5, 4})), "Router: k is 5, expected 1 to the 3 experts");
  SigmaMoe layer(options_for({1, 1, 4, 3, 2, 1, 4}));
  EXPECT_ERROR(layer.forward(Variable(Tensor::zeros({1, 2, 5}))), "SigmaMoe: x must be [B, T, 4], got [1, 2, 5]");
}

}  // namespace
}  // namespace switchyard::moe
