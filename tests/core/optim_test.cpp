#include "core/ops/optim.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/close.h"
#include "tests/support/device.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using testing::random_tensor;

Tensor rate(double value) { return Tensor::full({1}, value, DType::f64); }
Tensor step(std::int64_t value) { return Tensor::full({1}, static_cast<double>(value), DType::i64); }
DType state_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

/// A parameter with its optimiser state, and the same in plain doubles.
struct Case {
  ops::AdamWSlot slot;
  std::vector<double> weights, gradient, first_moment, second_moment;

  Case(const Shape& shape, DType dtype, DType gradient_dtype, double decay, std::uint64_t seed) {
    slot.parameter = random_tensor(shape, seed, dtype);
    slot.gradient = Tensor::zeros(shape, gradient_dtype);
    slot.first_moment = Tensor::zeros(shape, state_dtype(dtype));
    slot.second_moment = Tensor::zeros(shape, state_dtype(dtype));
    if (dtype == DType::bf16) slot.master = slot.parameter.to(DType::f32);
    slot.weight_decay = decay;
    weights = slot.parameter.to_vector<double>();
    first_moment.resize(weights.size());
    second_moment.resize(weights.size());
  }

  void set_gradient(std::uint64_t seed) {
    slot.gradient.copy_from(random_tensor(slot.gradient.shape(), seed));
    gradient = slot.gradient.to_vector<double>();
  }

  /// The published update, element by element.
  void plain_adamw(double learning_rate, std::int64_t t, double scale, double beta1, double beta2, double epsilon) {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const double g = gradient[i] * scale;
      weights[i] *= 1 - learning_rate * slot.weight_decay;
      first_moment[i] = beta1 * first_moment[i] + (1 - beta1) * g;
      second_moment[i] = beta2 * second_moment[i] + (1 - beta2) * g * g;
      const double m = first_moment[i] / (1 - std::pow(beta1, static_cast<double>(t)));
      const double v = second_moment[i] / (1 - std::pow(beta2, static_cast<double>(t)));
      weights[i] -= learning_rate * m / (std::sqrt(v) + epsilon);
    }
  }

  void expect_equal(double allowed) const {
    const Shape& shape = slot.parameter.shape();
    const Tensor& exact = slot.master.defined() ? slot.master : slot.parameter;
    EXPECT_CLOSE(exact, Tensor::from(weights, shape), allowed);
    EXPECT_CLOSE(slot.first_moment, Tensor::from(first_moment, shape), allowed);
    EXPECT_CLOSE(slot.second_moment, Tensor::from(second_moment, shape), allowed);
    if (slot.master.defined()) {
      EXPECT_CLOSE(slot.parameter, slot.master.to(DType::bf16), 0);
    }
  }
};

TEST(AdamW, MatchesThePublishedUpdate) {
  for (const auto& [dtype, gradient_dtype] : {std::pair{DType::f64, DType::f64},
                                              {DType::f32, DType::f32},
                                              {DType::f32, DType::bf16},
                                              {DType::bf16, DType::bf16},
                                              {DType::bf16, DType::f32}}) {
    SCOPED_TRACE(::testing::Message() << dtype << ", gradient " << gradient_dtype);
    std::vector<Case> cases;  // small and large parameters, with and without decay
    cases.emplace_back(Shape{5, 4}, dtype, gradient_dtype, 0.1, 1);
    cases.emplace_back(Shape{7}, dtype, gradient_dtype, 0, 2);
    cases.emplace_back(Shape{0, 3}, dtype, gradient_dtype, 0, 3);
    cases.emplace_back(Shape{3, 16384}, dtype, gradient_dtype, 0.01, 4);
    for (std::int64_t t = 1; t <= 10; ++t) {
      std::vector<ops::AdamWSlot> slots;
      for (Case& one : cases) {
        one.set_gradient(static_cast<std::uint64_t>(100 * t) + one.weights.size());
        one.plain_adamw(3e-3 / static_cast<double>(t), t, 0.7, 0.9, 0.98, 1e-8);
        slots.push_back(one.slot);
      }
      ops::adamw(slots, rate(3e-3 / static_cast<double>(t)), step(t), rate(0.7), 0.9, 0.98, 1e-8);
    }
    for (const Case& one : cases) one.expect_equal(dtype == DType::f64 ? 1e-13 : 2e-6);
  }
}

TEST(AdamW, WithoutGradientScale) {
  Case with(Shape{9}, DType::f64, DType::f64, 0.1, 1), without(Shape{9}, DType::f64, DType::f64, 0.1, 1);
  with.set_gradient(2);
  without.set_gradient(2);
  ops::adamw({with.slot}, rate(0.01), step(1), rate(1), 0.9, 0.999, 1e-8);
  ops::adamw({without.slot}, rate(0.01), step(1), {}, 0.9, 0.999, 1e-8);
  EXPECT_CLOSE(with.slot.parameter, without.slot.parameter, 0);
}

TEST(AdamW, Errors) {
  const std::string device = testing::text_of(default_device());
  Case one(Shape{4}, DType::f32, DType::f32, 0, 1);
  const auto update = [](const ops::AdamWSlot& slot) { ops::adamw({slot}, rate(0.1), step(1), {}, 0.9, 0.99, 1e-8); };
  EXPECT_NO_THROW(update(one.slot));
  EXPECT_NO_THROW(ops::adamw({}, {}, {}, {}, 0.9, 0.99, 1e-8));
  ops::AdamWSlot bad = one.slot;
  bad.gradient = Tensor::zeros({5});
  EXPECT_ERROR(update(bad), "adamw: slot 0 is [4], its gradient [5]");
  bad = one.slot;
  bad.gradient = Tensor();
  EXPECT_ERROR(update(bad), "adamw: slot 0 lacks its parameter or gradient");
  bad = one.slot;
  bad.gradient = Tensor::zeros({4}, DType::f64);
  EXPECT_ERROR(update(bad), "adamw: slot 0 is f32, its gradient f64");
  bad = one.slot;
  bad.second_moment = Tensor::zeros({4}, DType::bf16);
  EXPECT_ERROR(update(bad), "adamw: second_moment of slot 0 must be a dense f32 tensor [4] on " + device);
  bad = one.slot;
  bad.master = Tensor::zeros({4});
  EXPECT_ERROR(update(bad), "adamw: slot 0 is f32 and takes no master copy");
  bad = Case(Shape{4}, DType::bf16, DType::bf16, 0, 1).slot;
  bad.master = Tensor();
  EXPECT_ERROR(update(bad), "adamw: slot 0 is bf16 and needs a master copy");
  bad = one.slot;
  bad.parameter = Tensor::zeros({8}).slice(0, 0, 8, 2);
  EXPECT_ERROR(update(bad), "adamw: slot 0 is not dense");
  EXPECT_ERROR(ops::adamw({one.slot}, Tensor::scalar(0.1), step(1), {}, 0.9, 0.99, 1e-8),
               "adamw: learning_rate must be f64 [1] on " + device);
  EXPECT_ERROR(ops::adamw({one.slot}, rate(0.1), step(1), {}, 1.0, 0.99, 1e-8),
               "adamw: betas are 1 and 0.99, expected 0 <= beta < 1");
}

TEST(Sgd, MatchesPlainLoops) {
  for (const DType dtype : testing::kFloatingDTypes)
    for (const double momentum : {0.0, 0.9}) {
      ops::SgdSlot slot;
      slot.parameter = random_tensor({3, 50}, 1, dtype);
      slot.gradient = Tensor::zeros({3, 50}, dtype);
      if (momentum > 0) slot.momentum = Tensor::zeros({3, 50}, state_dtype(dtype));
      if (dtype == DType::bf16) slot.master = slot.parameter.to(DType::f32);
      slot.weight_decay = 0.2;
      std::vector<double> weights = slot.parameter.to_vector<double>(), velocity(weights.size());
      for (std::uint64_t t = 1; t <= 5; ++t) {
        slot.gradient.copy_from(random_tensor({3, 50}, 10 + t));
        const std::vector<double> gradient = slot.gradient.to_vector<double>();
        for (std::size_t i = 0; i < weights.size(); ++i) {
          velocity[i] = momentum * velocity[i] + 0.5 * gradient[i] + 0.2 * weights[i];
          weights[i] -= 0.05 * velocity[i];
        }
        ops::sgd({slot}, rate(0.05), rate(0.5), momentum);
      }
      const Tensor& exact = slot.master.defined() ? slot.master : slot.parameter;
      EXPECT_CLOSE(exact, Tensor::from(weights, {3, 50}), dtype == DType::f64 ? 1e-13 : 2e-6);
    }
}

TEST(Sgd, Errors) {
  ops::SgdSlot slot{Tensor::zeros({2}), Tensor::zeros({2}), {}, {}, 0};
  EXPECT_ERROR(ops::sgd({slot}, rate(0.1), {}, 0.9), "sgd: momentum is 0.9, but slot 0 has no momentum tensor");
  EXPECT_ERROR(ops::sgd({slot}, rate(0.1), {}, -1), "sgd: momentum is -1, expected 0 <= momentum < 1");
}

TEST(GlobalNorm, SumsOverAllTensors) {
  const Tensor a = random_tensor({3, 7}, 1, DType::f32), b = random_tensor({40000}, 2, DType::bf16),
               c = random_tensor({5, 5}, 3, DType::f64).transpose(0, 1), none = Tensor::empty({0});
  double sum = 0;
  for (const Tensor& x : {a, b, c})
    for (const double value : x.to_vector<double>()) sum += value * value;
  EXPECT_NEAR(ops::global_norm({a, b, none, c}).item<double>(), std::sqrt(sum), 1e-12 * std::sqrt(sum));
  EXPECT_EQ(ops::global_norm({}).item<double>(), 0);
  EXPECT_TRUE(std::isnan(ops::global_norm({a, Tensor::full({1}, NAN)}).item<double>()));
  // A float sum of squares would overflow.
  EXPECT_NEAR(ops::global_norm({Tensor::full({4}, 1e30)}).item<double>() / 2e30, 1, 1e-6);
  EXPECT_ERROR(ops::global_norm({a, Tensor()}), "global_norm: an undefined tensor");
  EXPECT_ERROR(ops::global_norm({Tensor::zeros({2}, DType::i64)}), "global_norm: expected a floating dtype");
}

TEST(ClipFactor, NeverAboveOne) {
  EXPECT_DOUBLE_EQ(ops::clip_factor(rate(2), 1).item<double>(), 1 / (2 + 1e-6));
  EXPECT_EQ(ops::clip_factor(rate(0.5), 1).item<double>(), 1);
  EXPECT_EQ(ops::clip_factor(rate(0), 1).item<double>(), 1);
  EXPECT_TRUE(std::isnan(ops::clip_factor(rate(NAN), 1).item<double>()));
  EXPECT_ERROR(ops::clip_factor(rate(1), -1), "clip_factor: max_norm is -1, expected at least 0");
  EXPECT_ERROR(ops::clip_factor(Tensor::zeros({1}), 1), "clip_factor: norm must be f64 [1]");
}

}  // namespace
}  // namespace switchyard
