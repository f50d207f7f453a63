#include "nn/optim/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "nn/optim/sgd.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::nn {
namespace {

using switchyard::testing::max_error;
using switchyard::testing::random_tensor;

std::vector<NamedParameter> make_parameters(DType dtype) {
  return {{"layer.weight", Variable(random_tensor({5, 4}, 1, dtype), true), true},
          {"layer.bias", Variable(random_tensor({7}, 2, dtype), true), false}};
}

void set_gradients(const std::vector<NamedParameter>& parameters, std::uint64_t step) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Variable& v = parameters[i].variable;
    v.set_grad(random_tensor(v.shape(), 100 * step + i, v.dtype()));
  }
}

/// AdamW and SGD in plain doubles, from the papers.
struct Naive {
  std::vector<double> value, first, second, momentum;

  explicit Naive(const Tensor& initial)
      : value(initial.to_vector<double>()), first(value.size()), second(value.size()), momentum(value.size()) {}

  void adamw(const std::vector<double>& g, int step, double rate, const AdamWOptions& o, double decay, double scale) {
    for (std::size_t i = 0; i < value.size(); ++i) {
      const double gradient = g[i] * scale;
      value[i] -= rate * decay * value[i];
      first[i] = o.beta1 * first[i] + (1 - o.beta1) * gradient;
      second[i] = o.beta2 * second[i] + (1 - o.beta2) * gradient * gradient;
      const double m = first[i] / (1 - std::pow(o.beta1, step)), v = second[i] / (1 - std::pow(o.beta2, step));
      value[i] -= rate * m / (std::sqrt(v) + o.epsilon);
    }
  }

  void sgd(const std::vector<double>& g, double rate, double mu, double decay, double scale) {
    for (std::size_t i = 0; i < value.size(); ++i) {
      momentum[i] = mu * momentum[i] + g[i] * scale + decay * value[i];
      value[i] -= rate * momentum[i];
    }
  }
};

double rate_at(int step) { return 3e-3 / step; }

double tolerance_of(DType dtype) { return dtype == DType::f64 ? 1e-12 : 1e-5; }

TEST(AdamW, equals_the_formula) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const bool decay_all : {false, true}) {
      const auto parameters = make_parameters(dtype);
      AdamWOptions options;
      options.beta2 = 0.98;
      AdamW optimizer(parameter_groups(parameters, 0.1, decay_all), options);
      std::vector<Naive> naive = {Naive(parameters[0].variable.data()), Naive(parameters[1].variable.data())};
      for (int step = 1; step <= 8; ++step) {
        set_gradients(parameters, static_cast<std::uint64_t>(step));
        const ClipResult clip = clip_gradients({parameters[0].variable, parameters[1].variable}, 1.0);
        double squares = 0;
        for (const NamedParameter& p : parameters)
          for (const double g : p.variable.grad().to_vector<double>()) squares += g * g;
        const double scale = std::min(1.0, 1.0 / (std::sqrt(squares) + 1e-6));
        EXPECT_NEAR(clip.norm.item<double>(), std::sqrt(squares), 1e-6);
        EXPECT_NEAR(clip.factor.item<double>(), scale, 1e-6);
        for (std::size_t i = 0; i < 2; ++i)
          naive[i].adamw(parameters[i].variable.grad().to_vector<double>(), step, rate_at(step), options,
                         i == 0 || decay_all ? 0.1 : 0.0, scale);
        optimizer.set_learning_rate(rate_at(step));
        optimizer.step(clip.factor);
        for (std::size_t i = 0; i < 2; ++i)
          EXPECT_CLOSE(parameters[i].variable.data(), Tensor::from(naive[i].value, parameters[i].variable.shape()),
                       tolerance_of(dtype));
      }
    }
  }
}

TEST(Sgd, equals_the_formula) {
  for (const double momentum : {0.0, 0.9}) {
    const auto parameters = make_parameters(DType::f64);
    SgdOptions options;
    options.momentum = momentum;
    Sgd optimizer(parameter_groups(parameters, 0.1), options);
    EXPECT_EQ(optimizer.state_tensors().size(), momentum > 0 ? 3u : 1u);
    std::vector<Naive> naive = {Naive(parameters[0].variable.data()), Naive(parameters[1].variable.data())};
    for (int step = 1; step <= 5; ++step) {
      set_gradients(parameters, static_cast<std::uint64_t>(step));
      for (std::size_t i = 0; i < 2; ++i)
        naive[i].sgd(parameters[i].variable.grad().to_vector<double>(), rate_at(step), momentum, i == 0 ? 0.1 : 0, 0.5);
      optimizer.set_learning_rate(rate_at(step));
      optimizer.step(Tensor::full({1}, 0.5, DType::f64));
      for (std::size_t i = 0; i < 2; ++i)
        EXPECT_CLOSE(parameters[i].variable.data(), Tensor::from(naive[i].value, parameters[i].variable.shape()),
                     1e-13);
    }
  }
}

TEST(Optimizer, bf16_parameters_move_through_an_f32_copy) {
  // Each update is far below the spacing of bf16 numbers near 1: without the copy nothing would ever change.
  const std::vector<NamedParameter> parameters = {{"w", Variable(Tensor::ones({3}, DType::bf16), true), true}};
  SgdOptions options;
  options.learning_rate = 1e-4;
  Sgd optimizer(parameter_groups(parameters, 0), options);
  for (int i = 0; i < 500; ++i) {
    parameters[0].variable.set_grad(Tensor::ones({3}, DType::bf16));
    optimizer.step();
  }
  EXPECT_CLOSE(parameters[0].variable.data(), Tensor::full({3}, 0.95), 4e-3);
  const auto state = optimizer.state_tensors();
  ASSERT_EQ(state.size(), 2u);
  EXPECT_EQ(state[1].first, "w.master");
  EXPECT_EQ(state[1].second.dtype(), DType::f32);
  EXPECT_CLOSE(state[1].second, Tensor::full({3}, 0.95), 1e-5);
  parameters[0].variable.data().fill(2);
  optimizer.refresh_masters();
  EXPECT_CLOSE(state[1].second, Tensor::full({3}, 2), 0.0);
}

TEST(Optimizer, continues_exactly_from_its_state) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto run_steps = [](const auto& parameters, Optimizer& optimizer, std::uint64_t from, std::uint64_t to) {
      for (std::uint64_t step = from; step < to; ++step) {
        set_gradients(parameters, step);
        optimizer.step();
      }
    };
    const auto straight = make_parameters(dtype);
    AdamW whole(parameter_groups(straight, 0.1));
    run_steps(straight, whole, 0, 6);

    const auto first = make_parameters(dtype);
    AdamW half(parameter_groups(first, 0.1));
    run_steps(first, half, 0, 3);
    const auto second = make_parameters(dtype);
    for (std::size_t i = 0; i < 2; ++i) second[i].variable.data().copy_from(first[i].variable.data());
    AdamW resumed(parameter_groups(second, 0.1));
    const auto saved = half.state_tensors(), targets = resumed.state_tensors();
    ASSERT_EQ(saved.size(), targets.size());
    for (std::size_t i = 0; i < saved.size(); ++i) {
      EXPECT_EQ(saved[i].first, targets[i].first);
      targets[i].second.copy_from(saved[i].second);
    }
    run_steps(second, resumed, 3, 6);
    for (std::size_t i = 0; i < 2; ++i) EXPECT_CLOSE(second[i].variable.data(), straight[i].variable.data(), 0.0);
  }
}

TEST(Optimizer, leaves_parameters_without_a_gradient_alone) {
  const auto parameters = make_parameters(DType::f64);
  AdamW optimizer(parameter_groups(parameters, 0.1));
  const Tensor before = parameters[0].variable.data().clone();
  optimizer.step();
  EXPECT_CLOSE(parameters[0].variable.data(), before, 0.0);
  set_gradients(parameters, 1);
  parameters[0].variable.zero_grad();
  const Tensor bias = parameters[1].variable.data().clone();
  optimizer.step();
  EXPECT_CLOSE(parameters[0].variable.data(), before, 0.0);
  EXPECT_GT(max_error(parameters[1].variable.data(), bias), 1e-6);
  optimizer.zero_grad();
  EXPECT_FALSE(parameters[1].variable.grad().defined());
}

TEST(Optimizer, groups_have_their_own_decay_and_rate) {
  const auto parameters = make_parameters(DType::f64);
  EXPECT_EQ(parameter_groups(parameters, 0.1).size(), 2u);
  EXPECT_EQ(parameter_groups(parameters, 0.1, true).size(), 1u);
  std::vector<ParameterGroup> groups = {{{parameters[0]}, 0, 1}, {{parameters[1]}, 0, 0}};
  SgdOptions options;
  options.learning_rate = 0.5;
  Sgd optimizer(groups, options);
  EXPECT_EQ(optimizer.learning_rate(), 0.5);
  set_gradients(parameters, 1);
  const Tensor before = parameters[1].variable.data().clone();
  optimizer.step();
  EXPECT_CLOSE(parameters[1].variable.data(), before, 0.0);
}

TEST(Optimizer, says_what_is_wrong) {
  const auto parameters = make_parameters(DType::f64);
  EXPECT_ERROR(AdamW({}), "optimizer: no parameters");
  EXPECT_ERROR(AdamW({{{parameters[0], parameters[0]}, 0, 1}}), "parameter \"layer.weight\" is given twice");
  EXPECT_ERROR(AdamW(parameter_groups(parameters, -1)), "optimizer: weight decay -1 is negative");
  AdamWOptions options;
  options.beta1 = 1;
  EXPECT_ERROR(AdamW(parameter_groups(parameters, 0), options), "AdamW: betas 1 and 0.999, expected 0 <= beta < 1");
  SgdOptions sgd;
  sgd.momentum = 1;
  EXPECT_ERROR(Sgd(parameter_groups(parameters, 0), sgd), "Sgd: momentum 1, expected 0 <= m < 1");
  AdamW optimizer(parameter_groups(parameters, 0));
  EXPECT_ERROR(optimizer.set_learning_rate(-1), "optimizer: learning rate -1, expected 0 or more");
}

TEST(ClipGradients, without_a_limit_or_gradients) {
  const auto parameters = make_parameters(DType::f32);
  const Variables variables = {parameters[0].variable, parameters[1].variable};
  EXPECT_EQ(clip_gradients(variables, 1).norm.item<double>(), 0);
  EXPECT_EQ(clip_gradients(variables, 1).factor.item<double>(), 1);
  set_gradients(parameters, 1);
  EXPECT_EQ(clip_gradients(variables, 0).factor.item<double>(), 1);
  EXPECT_GT(clip_gradients(variables, 0).norm.item<double>(), 0);
}

}  // namespace
}  // namespace switchyard::nn
