#include "moe/conversion/sparsity.h"

#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::random_tensor;

// Values that stay clear of the kinks, so that differences are meaningful.
Tensor values() {
  Tensor x = random_tensor({3, 2, 5}, 1, DType::f64, 0.1, 1);
  ops::accumulate(x, random_tensor({3, 2, 5}, 2, DType::f64, 0.2, 1), -1);
  return ops::where(ops::binary(ops::Binary::less, ops::unary(ops::Unary::abs, x), Tensor::scalar(0.01, DType::f64)),
                    Tensor::scalar(0.3, DType::f64), x);
}

TEST(SparsityPenalty, gradients_are_those_of_differences) {
  const Variable x(values(), true);
  EXPECT_TRUE(gradcheck([](const Variables& in) { return square_hoyer(in[0]); }, {x}));
  EXPECT_TRUE(gradcheck([](const Variables& in) { return l1_norm(in[0]); }, {x}));
  EXPECT_TRUE(gradcheck([](const Variables& in) { return square_hoyer(displaced(in[0], -0.5)); }, {x}));
}

TEST(SparsityPenalty, square_hoyer_counts_equally_active_neurons) {
  for (const DType dtype : testing::kFloatingDTypes) {
    const Tensor x = Tensor::zeros({8, 8}, dtype);
    for (std::int64_t row = 0; row < 8; ++row) x.select(0, row).slice(0, 0, row).fill(-0.5);
    EXPECT_CLOSE(square_hoyer(Variable(x)).data(), Tensor::arange(8), 1e-6);
  }
}

TEST(SparsityPenalty, square_hoyer_does_not_depend_on_the_scale) {
  const Tensor x = random_tensor({4, 9}, 3);
  EXPECT_CLOSE(square_hoyer(Variable(ops::affine(x, 100))).data(), square_hoyer(Variable(x)).data(), 1e-12);
}

TEST(SparsityPenalty, bf16_is_summed_in_f32_and_gets_a_bf16_gradient) {
  const Variable x(random_tensor({4, 300}, 4, DType::bf16), true), exact(x.data().to(DType::f64), true);
  for (const SparsityMeasure measure : {SparsityMeasure::square_hoyer, SparsityMeasure::l1}) {
    x.zero_grad();
    exact.zero_grad();
    const Variable penalty = sparsity_penalty(measure, x);
    EXPECT_EQ(penalty.dtype(), DType::f32);
    penalty.backward();
    sparsity_penalty(measure, exact).backward();
    EXPECT_EQ(x.grad().dtype(), DType::bf16);
    EXPECT_CLOSE(x.grad(), exact.grad(), 8e-3);
  }
}

TEST(SparsityPenalty, Errors) {
  EXPECT_ERROR(square_hoyer(Variable(Tensor::zeros({0, 3}))), "square_hoyer: x must be [..., neurons] and not empty");
  EXPECT_ERROR(displaced(Variable(Tensor::zeros({3})), NAN), "displaced: displacement is nan");
}

TEST(SparsityWeight, schedules) {
  EXPECT_EQ(sparsity_weight::constant(0.2)(0), 0.2);
  EXPECT_EQ(sparsity_weight::constant(0.2)(1000), 0.2);
  const nn::Schedule linear = sparsity_weight::linear(0.2, 10);
  EXPECT_EQ(linear(0), 0);
  EXPECT_DOUBLE_EQ(linear(5), 0.1);
  EXPECT_EQ(linear(10), 0.2);
  EXPECT_EQ(linear(11), 0.2);
  EXPECT_ERROR(sparsity_weight::constant(-1), "sparsity_weight: weight is -1, expected 0 or more");
  EXPECT_ERROR(sparsity_weight::linear(1, 0), "sparsity_weight: 0 updates, expected at least 1");
}

TEST(ActivationSparsity, shares_are_those_of_a_count) {
  const Tensor x = Tensor::from<float>({0, 0, 1, 0.5F, 0.05F, 0.005F,  //
                                        0, 0, 0, 0, 0, 0,              //
                                        -4, 3, 0.3F, -0.3F, 0.03F, 0},
                                       {3, 6});
  ActivationSparsity sparsity;
  EXPECT_ERROR(sparsity.summary(), "ActivationSparsity: no activations were added");
  for (const DType dtype : {DType::f32, DType::bf16}) {
    sparsity.add(x.to(dtype));
    sparsity.add(x.to(dtype).view({1, 3, 6}));
    const SparsitySummary summary = sparsity.summary();
    EXPECT_EQ(summary.values, 36);
    EXPECT_DOUBLE_EQ(summary.zero, 9 / 18.0);
    EXPECT_DOUBLE_EQ(summary.below_tenth, (4 + 6 + 4) / 18.0);
    EXPECT_DOUBLE_EQ(summary.below_hundredth, (3 + 6 + 2) / 18.0);
    sparsity.reset();
    EXPECT_ERROR(sparsity.summary(), "no activations were added");
  }
}

}  // namespace
}  // namespace switchyard::moe
