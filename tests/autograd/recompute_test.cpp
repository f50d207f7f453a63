#include "autograd/recompute.h"

#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "core/rng.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using testing::random_tensor;

struct Outcome {
  Tensor y, dx, dw;
  GeneratorState generator;
};

/// A function with random numbers and a weight that is not among its inputs, run plainly or with recompute.
Outcome run(bool again) {
  seed_all(5);
  const Variable x(random_tensor({4, 6}, 1), true), w(random_tensor({6, 6}, 2), true);
  const auto f = [w](const Variables& in) { return Variables{dropout(tanh(linear(in[0], w)), 0.5)}; };
  Variable y = dropout(x, 0.25);
  for (int i = 0; i < 3; ++i) y = again ? recompute(f, {y})[0] : f({y})[0];
  y = dropout(y, 0.25);
  y.backward(random_tensor({4, 6}, 3));
  return {y.data(), x.grad(), w.grad(), default_generator(default_device()).state()};
}

TEST(Recompute, equals_the_plain_pass_with_its_random_numbers) {
  const Outcome plain = run(false), again = run(true);
  EXPECT_CLOSE(again.y, plain.y, 0.0);
  EXPECT_CLOSE(again.dx, plain.dx, 1e-15);
  EXPECT_CLOSE(again.dw, plain.dw, 1e-15);
  EXPECT_EQ(again.generator, plain.generator);
}

TEST(Recompute, passes_gradcheck_with_several_inputs_and_outputs) {
  const auto f = [](const Variables& in) {
    const Variables out = recompute(
        [](const Variables& v) {
          return Variables{v[0] * v[1], exp(v[0]), v[1]};
        },
        {in[0], in[1]});
    return out[0] * 2.0 + out[1] * out[0];  // out[2] is not used
  };
  const GradcheckResult result =
      gradcheck(f, {Variable(random_tensor({3}, 1), true), Variable(random_tensor({3}, 2), true)});
  EXPECT_TRUE(result) << result.message;
}

TEST(Recompute, keeps_only_the_inputs_until_the_backward_pass) {
  constexpr std::int64_t kElements = 1 << 18;
  constexpr std::size_t kBytes = kElements * sizeof(double);
  const auto in_use = [] { return memory_statistics(default_device()).current_bytes; };
  const Variable x(Tensor::ones({kElements}, DType::f64), true);
  const auto f = [](const Variables& in) {
    Variable y = in[0];
    for (int i = 0; i < 8; ++i) y = exp(y * 0.1);
    return Variables{y};
  };
  const std::size_t before = in_use();
  const Variable y = recompute(f, {x})[0];
  EXPECT_LT(in_use(), before + kBytes + 4096) << "only the result";
  sum(y).backward();
  EXPECT_LT(in_use(), before + 2 * kBytes + 4096) << "the result and the gradient";
}

TEST(Recompute, without_gradients_is_a_plain_call) {
  NoGradGuard guard;
  int calls = 0;
  recompute(
      [&](const Variables& in) {
        ++calls;
        return in;
      },
      {Variable(Tensor::ones({1}))});
  EXPECT_EQ(calls, 1);
}

TEST(Recompute, says_when_the_random_numbers_are_gone) {
  const Variable x(random_tensor({8}, 1), true);
  dropout(x, 0.5);
  const Variable y = recompute([](const Variables& in) { return Variables{dropout(in[0], 0.5)}; }, {x})[0];
  default_generator(default_device()).end_step();
  EXPECT_ERROR(sum(y).backward(), "recompute: the generator was reset between the forward and the backward pass");
  EXPECT_ERROR(recompute([](const Variables& in) { return in; }, {}), "recompute: needs at least one input");
}

}  // namespace
}  // namespace switchyard
