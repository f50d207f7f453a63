#include "core/ops/expert_matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using ops::Activation;
using ops::ExpertMatmulOptions;
using ops::Rows;
using testing::numeric_gradient;
using testing::random_mask;
using testing::random_tensor;
using testing::set_element;

constexpr Rows kAllRows[] = {Rows::token, Rows::row, Rows::pair};

/// The operands of one call; bias and gates may be undefined.
struct Operands {
  Tensor x, weight, bias, gates, dy;
  ops::RoutingPlan plan;
};

std::int64_t row_count(const ops::RoutingPlan& plan, Rows rows) {
  return rows == Rows::token ? plan.tokens : rows == Rows::row ? plan.rows() : plan.max_pairs();
}

double apply(Activation activation, double x) {
  switch (activation) {
    case Activation::relu: return x > 0 ? x : 0;
    case Activation::silu: return x / (1 + std::exp(-x));
    default: return x;
  }
}

/// All results of one call, from the definition, one multiplication at a time. Only pairs that exist are written.
struct Reference {
  std::vector<double> y, dx, dweight, dbias, dgates;

  Reference(const Operands& in, const ExpertMatmulOptions& options) {
    const auto& plan = in.plan;
    const auto x = in.x.to_vector<double>(), weight = in.weight.to_vector<double>();
    const auto bias = in.bias.defined() ? in.bias.to_vector<double>() : std::vector<double>{};
    const auto gates = in.gates.defined() ? in.gates.to_vector<double>() : std::vector<double>{};
    const auto dy = in.dy.defined() ? in.dy.to_vector<double>() : std::vector<double>{};
    const auto offsets = plan.expert_offsets.to_vector<std::int64_t>();
    const auto pair_to_choice = plan.pair_to_choice.to_vector<std::int64_t>();
    const std::int64_t inner = in.weight.size(1), width = in.weight.size(2);
    y.assign(static_cast<std::size_t>(row_count(plan, options.output) * width), 0);
    dx.assign(x.size(), 0);
    dweight.assign(weight.size(), 0);
    dbias.assign(static_cast<std::size_t>(plan.experts * width), 0);
    dgates.assign(static_cast<std::size_t>(plan.max_pairs()), 0);
    const auto row_of = [&](Rows rows, std::int64_t pair) {
      const std::int64_t choice = pair_to_choice[static_cast<std::size_t>(pair)];
      return rows == Rows::pair ? pair : choice / (rows == Rows::row ? plan.choices : plan.choices * plan.slots);
    };
    for (std::int64_t expert = 0; expert < plan.experts; ++expert) {
      for (std::int64_t pair = offsets[static_cast<std::size_t>(expert)];
           pair < offsets[static_cast<std::size_t>(expert + 1)]; ++pair) {
        const auto choice = static_cast<std::size_t>(pair_to_choice[static_cast<std::size_t>(pair)]);
        const double gate = gates.empty() ? 1 : gates[choice];
        const std::int64_t from = row_of(options.input, pair) * inner, to = row_of(options.output, pair) * width;
        for (std::int64_t m = 0; m < width; ++m) {
          const auto column = static_cast<std::size_t>(expert * width + m);
          double product = bias.empty() ? 0 : bias[column];
          for (std::int64_t i = 0; i < inner; ++i) {
            product += x[static_cast<std::size_t>(from + i)] *
                       weight[static_cast<std::size_t>((expert * inner + i) * width + m)];
          }
          y[static_cast<std::size_t>(to + m)] += gate * apply(options.activation, product);
          if (dy.empty()) continue;
          const double gradient = dy[static_cast<std::size_t>(to + m)];
          dgates[choice] += gradient * product;
          dbias[column] += gate * gradient;
          for (std::int64_t i = 0; i < inner; ++i) {
            const auto at = static_cast<std::size_t>((expert * inner + i) * width + m);
            dx[static_cast<std::size_t>(from + i)] += gate * gradient * weight[at];
            dweight[at] += gate * gradient * x[static_cast<std::size_t>(from + i)];
          }
        }
      }
    }
  }
};

/// Plans of every kind that differ in how the pairs fall.
std::vector<std::pair<std::string, ops::RoutingPlan>> plans() {
  std::mt19937 random(5);
  const auto top_k = [&](std::int64_t tokens, std::int64_t slots, std::int64_t experts, std::int64_t k) {
    return ops::routing_plan(ops::top_k(random_tensor({tokens, slots, experts}, random(), DType::f32), k), experts);
  };
  const auto mask = [&](std::int64_t tokens, std::int64_t slots, std::int64_t experts, unsigned percent) {
    return ops::routing_plan_from_mask(random_mask({tokens, slots, experts}, random, percent));
  };
  return {{"top 2 of 5", top_k(13, 1, 5, 2)},
          {"two slots", top_k(9, 2, 4, 2)},
          {"k = E", top_k(6, 1, 3, 3)},
          {"one token", top_k(1, 3, 4, 1)},
          {"zero tokens", top_k(0, 2, 4, 2)},
          {"mostly empty experts", top_k(3, 1, 40, 1)},
          {"one expert takes all", ops::routing_plan(Tensor::full({600, 1}, 2, DType::i32), 4)},
          {"mask", mask(11, 2, 4, 40)},
          {"empty mask", mask(5, 1, 4, 0)},
          {"full mask", mask(5, 1, 4, 100)}};
}

Operands operands(const ops::RoutingPlan& plan, const ExpertMatmulOptions& options, std::int64_t inner,
                  std::int64_t width, bool bias, bool gates, DType dtype) {
  Operands in;
  in.plan = plan;
  in.x = random_tensor({row_count(plan, options.input), inner}, 1, dtype);
  in.weight = random_tensor({plan.experts, inner, width}, 2, dtype);
  if (bias) in.bias = random_tensor({plan.experts, width}, 3, dtype);
  if (gates) in.gates = random_tensor({plan.tokens, plan.slots, plan.choices}, 4, dtype);
  in.dy = random_tensor({row_count(plan, options.output), width}, 5, dtype);
  return in;
}

void expect_forward(const Operands& in, const ExpertMatmulOptions& options, double allowed) {
  const Tensor y = ops::expert_matmul(in.x, in.weight, in.bias, in.gates, in.plan, options);
  EXPECT_EQ(y.dtype(), in.x.dtype());
  EXPECT_CLOSE(y, Tensor::from(Reference(in, options).y, y.shape()), allowed);
}

void expect_backward(const Operands& in, const ExpertMatmulOptions& options, double allowed) {
  const Reference reference(in, options);
  const auto input = ops::expert_matmul_input_backward(in.dy, in.x, in.weight, in.bias, in.gates, in.plan, options,
                                                       true, in.gates.defined());
  EXPECT_CLOSE(input.dx, Tensor::from(reference.dx, in.x.shape()), allowed);
  ASSERT_EQ(input.dgates.defined(), in.gates.defined());
  if (in.gates.defined()) {
    EXPECT_CLOSE(input.dgates, Tensor::from(reference.dgates, in.gates.shape()), allowed);
    const auto only_gates =
        ops::expert_matmul_input_backward(in.dy, in.x, in.weight, in.bias, in.gates, in.plan, options, false, true);
    EXPECT_FALSE(only_gates.dx.defined());
    EXPECT_CLOSE(only_gates.dgates, Tensor::from(reference.dgates, in.gates.shape()), allowed);
  }
  const auto weight = ops::expert_matmul_weight_backward(in.dy, in.x, in.gates, in.plan, options, in.bias.defined());
  EXPECT_CLOSE(weight.dweight, Tensor::from(reference.dweight, in.weight.shape()), allowed);
  ASSERT_EQ(weight.dbias.defined(), in.bias.defined());
  if (in.bias.defined()) {
    EXPECT_CLOSE(weight.dbias, Tensor::from(reference.dbias, in.bias.shape()), allowed);
  }
}

TEST(ExpertMatmul, EqualsItsDefinitionForAllRowsBiasAndGates) {
  for (const auto& [name, plan] : plans()) {
    for (const Rows input : kAllRows) {
      for (const Rows output : kAllRows) {
        for (const bool bias : {false, true}) {
          for (const bool gates : {false, true}) {
            SCOPED_TRACE(::testing::Message() << name << ", rows " << static_cast<int>(input) << " to "
                                              << static_cast<int>(output) << ", bias " << bias << ", gates " << gates);
            const ExpertMatmulOptions options = {input, output};
            const Operands in = operands(plan, options, 7, 5, bias, gates, DType::f64);
            expect_forward(in, options, 1e-12);
            expect_backward(in, options, 1e-12);
          }
        }
      }
    }
  }
}

TEST(ExpertMatmul, InEveryDtype) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [name, plan] : plans()) {
      for (const Rows rows : kAllRows) {
        SCOPED_TRACE(::testing::Message() << name << ", " << dtype << ", rows " << static_cast<int>(rows));
        const ExpertMatmulOptions up = {rows, Rows::pair, Activation::silu}, down = {Rows::pair, rows};
        const double allowed = dtype == DType::f32 ? 1e-5 : 2e-2;
        expect_forward(operands(plan, up, 20, 17, true, true, dtype), up, allowed);
        const Operands in = operands(plan, down, 20, 17, true, true, dtype);
        expect_forward(in, down, allowed);
        expect_backward(in, down, allowed);
      }
    }
  }
}

TEST(ExpertMatmul, ExpertsOfAFewNeuronsUnderAMask) {
  std::mt19937 random(7);
  for (const DType dtype : {DType::f32, DType::f64})
    for (const std::int64_t tokens : {16, 300})  // one chunk of tokens, and more
      for (const std::int64_t neurons : {1, 4, 6}) {
        const auto plan = ops::routing_plan_from_mask(random_mask({tokens, 9}, random, 30));
        const double allowed = dtype == DType::f32 ? 1e-5 : 1e-12;
        for (const bool bias : {false, true}) {
          const ExpertMatmulOptions up = {Rows::token, Rows::pair, Activation::silu};
          expect_forward(operands(plan, up, 50, neurons, bias, false, dtype), up, allowed);
          const ExpertMatmulOptions down = {Rows::pair, Rows::token};
          expect_forward(operands(plan, down, neurons, 300, bias, bias, dtype), down, allowed);
        }
        const ExpertMatmulOptions weighted = {Rows::pair, Rows::row};
        expect_forward(operands(plan, weighted, neurons, 50, false, true, dtype), weighted, allowed);
      }
}

TEST(ExpertMatmul, ActivationComesBeforeTheGate) {
  for (const auto& [name, plan] : plans()) {
    for (const Activation activation : {Activation::relu, Activation::silu}) {
      const ExpertMatmulOptions options = {Rows::row, Rows::pair, activation};
      expect_forward(operands(plan, options, 6, 9, true, true, DType::f64), options, 1e-12);
    }
  }
}

TEST(ExpertMatmul, InputGradientsPassThroughRelu) {
  for (const DType dtype : {DType::f64, DType::bf16}) {
    for (const auto& [name, plan] : plans()) {
      for (const Rows output : kAllRows) {
        SCOPED_TRACE(::testing::Message() << name << ", " << dtype << ", rows " << static_cast<int>(output));
        ExpertMatmulOptions options = {Rows::pair, output};
        Operands in = operands(plan, options, 20, 12, true, true, dtype);
        in.x = ops::unary(ops::Unary::relu, in.x);
        Reference reference(in, options);
        const auto x = in.x.to_vector<double>();
        for (std::size_t i = 0; i < x.size(); ++i)
          if (x[i] <= 0) reference.dx[i] = 0;
        options.input_activation = Activation::relu;
        const auto back =
            ops::expert_matmul_input_backward(in.dy, in.x, in.weight, in.bias, in.gates, plan, options, true, true);
        const double allowed = dtype == DType::f64 ? 1e-12 : 2e-2;
        EXPECT_CLOSE(back.dx, Tensor::from(reference.dx, in.x.shape()), allowed);
        EXPECT_CLOSE(back.dgates, Tensor::from(reference.dgates, in.gates.shape()), allowed);
        const auto only_dx =
            ops::expert_matmul_input_backward(in.dy, in.x, in.weight, {}, {}, plan, options, true, false);
        in.gates = {};
        Reference ungated(in, options);
        for (std::size_t i = 0; i < x.size(); ++i)
          if (x[i] <= 0) ungated.dx[i] = 0;
        EXPECT_CLOSE(only_dx.dx, Tensor::from(ungated.dx, in.x.shape()), allowed);
      }
    }
  }
}

TEST(ExpertMatmul, TransposedWeightsAreUsedInPlace) {
  const auto plan = ops::routing_plan(ops::top_k(random_tensor({20, 2, 3}, 1, DType::f64), 2), 3);
  const ExpertMatmulOptions options = {Rows::token, Rows::row};
  Operands in = operands(plan, options, 8, 6, false, true, DType::f64);
  in.weight = random_tensor({6, 6, 8}, 9, DType::f64).transpose(1, 2);
  expect_forward(in, options, 1e-12);
  expect_backward(in, options, 1e-12);
  in.weight = random_tensor({6, 8, 12}, 9, DType::f64).slice(2, 0, 12, 2);  // no stride is 1
  expect_forward(in, options, 1e-12);
}

// More pairs than a block, more products than the buffer, and an expert heavy enough to be cut.
TEST(ExpertMatmul, LargeEnoughForEveryPath) {
  std::vector<std::int32_t> indices;
  for (std::int32_t token = 0; token < 1500; ++token) {
    indices.push_back(token % 10 == 0 ? 1 : 0);
    indices.push_back(2);
  }
  const auto plan = ops::routing_plan(Tensor::from(indices, {1500, 2}), 4);
  for (const auto& [input, output] : {std::pair{Rows::token, Rows::pair}, {Rows::pair, Rows::token}}) {
    const ExpertMatmulOptions options = {input, output};
    const Operands in = operands(plan, options, input == Rows::token ? 600 : 30, input == Rows::token ? 30 : 600, true,
                                 true, DType::f64);
    expect_forward(in, options, 1e-12);
    expect_backward(in, options, 1e-12);
  }
}

TEST(ExpertMatmul, GradientsAreThoseOfTheForwardPass) {
  const auto plan = ops::routing_plan(ops::top_k(random_tensor({5, 2, 3}, 1, DType::f64), 2), 3);
  const ExpertMatmulOptions options = {Rows::token, Rows::row};
  const Operands in = operands(plan, options, 4, 3, true, true, DType::f64);
  const auto objective = [&] {
    const auto y = ops::expert_matmul(in.x, in.weight, in.bias, in.gates, plan, options).to_vector<double>();
    const auto dy = in.dy.to_vector<double>();
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
    return sum;
  };
  const auto numeric = [&](const Tensor& parameter) { return numeric_gradient(parameter, objective); };
  const auto input =
      ops::expert_matmul_input_backward(in.dy, in.x, in.weight, in.bias, in.gates, plan, options, true, true);
  const auto weight = ops::expert_matmul_weight_backward(in.dy, in.x, in.gates, plan, options, true);
  EXPECT_CLOSE(input.dx, numeric(in.x), 1e-9);
  EXPECT_CLOSE(input.dgates, numeric(in.gates), 1e-9);
  EXPECT_CLOSE(weight.dweight, numeric(in.weight), 1e-9);
  EXPECT_CLOSE(weight.dbias, numeric(in.bias), 1e-9);
}

TEST(ExpertMatmul, IsDeterministic) {
  const auto plan = ops::routing_plan(ops::top_k(random_tensor({700, 16}, 1, DType::f32), 4), 16);
  const ExpertMatmulOptions options = {Rows::pair, Rows::token};
  const Operands in = operands(plan, options, 24, 96, true, true, DType::f32);
  const auto run = [&] {
    auto values = ops::expert_matmul(in.x, in.weight, in.bias, in.gates, plan, options).to_vector<float>();
    const auto weight = ops::expert_matmul_weight_backward(in.dy, in.x, in.gates, plan, options, true);
    for (const Tensor& x : {weight.dweight, weight.dbias}) {
      const auto more = x.to_vector<float>();
      values.insert(values.end(), more.begin(), more.end());
    }
    return values;
  };
  const auto first = run();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(run(), first);
}

TEST(ExpertMatmul, RowsWithoutAPairAreZero) {
  const Tensor mask = Tensor::zeros({3, 2}, DType::boolean);
  set_element(mask, {1, 0}, 1);  // token 1, expert 0
  const auto plan = ops::routing_plan_from_mask(mask);
  const auto run = [&](Rows output) {
    return ops::expert_matmul(Tensor::ones({3, 4}), Tensor::ones({2, 4, 1}), {}, {}, plan, {Rows::token, output})
        .to_vector<float>();
  };
  EXPECT_EQ(run(Rows::token), (std::vector<float>{0, 4, 0}));
  EXPECT_EQ(run(Rows::pair), (std::vector<float>{4, 0, 0, 0, 0, 0}));
}

TEST(ExpertMatmul, Errors) {
  const auto plan = ops::routing_plan(Tensor::zeros({6, 2}, DType::i32), 3);
  const Tensor x = Tensor::zeros({6, 4}), weight = Tensor::zeros({3, 4, 5});
  const auto run = [&](const Tensor& input, const Tensor& w, const Tensor& bias = {}, const Tensor& gates = {},
                       const ExpertMatmulOptions& options = {}) {
    return ops::expert_matmul(input, w, bias, gates, plan, options);
  };
  EXPECT_ERROR(run({}, weight), "expert_matmul: x is undefined");
  EXPECT_ERROR(run(Tensor::zeros({7, 4}), weight),
               "expert_matmul: x has shape [7, 4], expected [6, width] for one row per token");
  EXPECT_ERROR(run(x, Tensor::zeros({2, 4, 5})), "expert_matmul: weight has shape [2, 4, 5], expected [3, K, M]");
  EXPECT_ERROR(run(x, Tensor::zeros({3, 3, 5})), "expert_matmul: inner sizes differ: x [6, 4], weight [3, 3, 5]");
  EXPECT_ERROR(run(x, weight.to(DType::f64)), "expert_matmul: weight is f64, expected f32");
  EXPECT_ERROR(run(x.to(DType::i32), weight), "expert_matmul: x is i32, expected a floating dtype");
  EXPECT_ERROR(run(x, weight, Tensor::zeros({3, 4})), "expert_matmul: bias has shape [3, 4], expected [3, 5]");
  EXPECT_ERROR(run(x, weight, {}, Tensor::zeros({6, 3})), "expert_matmul: gates have shape [6, 3], expected [6, 1, 2]");
  EXPECT_ERROR(run(x, weight, {}, {}, {Rows::token, Rows::token, Activation::relu}),
               "expert_matmul: activation relu needs one output row per pair, not per token");
  const auto backward = [&](const Tensor& dy, const ExpertMatmulOptions& options) {
    return ops::expert_matmul_input_backward(dy, x, weight, {}, {}, plan, options, true, false);
  };
  EXPECT_ERROR(backward(Tensor::zeros({6, 5}), {}),
               "expert_matmul_input_backward: dy has shape [6, 5], expected [12, width] for one row per pair");
  EXPECT_ERROR(backward(Tensor::zeros({12, 6}), {}),
               "expert_matmul_input_backward: weight has shape [3, 4, 5], expected [3, 4, 6]");
  EXPECT_ERROR(backward(Tensor::zeros({12, 5}), {Rows::token, Rows::pair, Activation::relu}),
               "takes activation identity, got relu");
  EXPECT_ERROR(backward(Tensor::zeros({12, 5}), {Rows::token, Rows::pair, Activation::identity, Activation::relu}),
               "input activation relu with an input row per token, expected relu with a row per pair, or identity");
  EXPECT_ERROR(ops::expert_matmul_weight_backward(Tensor::zeros({12, 5}), x, Tensor::zeros({6, 1}), plan, {}, false),
               "expert_matmul_weight_backward: gates have shape [6, 1], expected [6, 1, 2]");
}

}  // namespace
}  // namespace switchyard
