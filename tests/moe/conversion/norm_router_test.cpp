#include "moe/conversion/norm_router.h"

#include <gtest/gtest.h>

#include "core/ops/matmul.h"
#include "tests/nn/layer_gradcheck.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::random_tensor;

NormRouterOptions small(std::int64_t depth, bool bias = false) {
  NormRouterOptions options;
  options.width = 6;
  options.experts = 5;
  options.hidden = 4;
  options.depth = depth;
  options.bias = bias;
  return options;
}

TEST(NormRouter, IsTheAbsoluteValueOfAReluPerceptron) {
  const NormRouter router(small(2));
  const auto parameters = router.named_parameters();
  ASSERT_EQ(parameters.size(), 2u);
  EXPECT_EQ(parameters[0].name, "layers.0.weight");
  EXPECT_EQ(parameters[0].variable.shape(), (Shape{4, 6}));
  EXPECT_EQ(parameters[1].variable.shape(), (Shape{5, 4}));
  const Tensor x = random_tensor({2, 3, 6}, 1, DType::f32);
  const Tensor hidden = ops::unary(ops::Unary::relu, ops::linear(x, parameters[0].variable.data()));
  const Tensor expected = ops::unary(ops::Unary::abs, ops::linear(hidden, parameters[1].variable.data()));
  EXPECT_CLOSE(router.forward(Variable(x)).data(), expected, 1e-6);
}

TEST(NormRouter, GradientsAtEveryDepth) {
  for (const std::int64_t depth : {1, 2, 3}) {
    NormRouterOptions options = small(depth, true);
    options.activation = ops::Activation::tanh;
    options.output_activation = ops::Activation::identity;
    NormRouter router(options);
    EXPECT_EQ(router.named_parameters().size(), static_cast<std::size_t>(2 * depth));
    nn::expect_gradients(router, {Variable(random_tensor({3, 6}, 2), true)},
                         [&](const Variables& in) { return router.forward(in[0]); });
  }
}

TEST(NormRouter, ScoresOfBf16TokensAreF32) {
  NormRouter router(small(2));
  const Tensor x = random_tensor({3, 6}, 3, DType::bf16);
  const Tensor exact = router.forward(Variable(x.to(DType::f32))).data();
  router.to(DType::bf16);
  const Tensor scores = router.forward(Variable(x)).data();
  EXPECT_EQ(scores.dtype(), DType::f32);
  EXPECT_CLOSE(scores, exact, 3e-2);
}

TEST(NormRouter, ScoresCanBeScaled) {
  NormRouterOptions options = small(2);
  options.bias = true;
  NormRouter router(options);
  for (const nn::NamedParameter& p : router.named_parameters())
    p.variable.data().copy_from(random_tensor(p.variable.shape(), 5));
  const Tensor x = random_tensor({3, 6}, 4, DType::f32);
  const Tensor before = router.forward(Variable(x)).data();
  router.scale_scores(0.25);
  EXPECT_CLOSE(router.forward(Variable(x)).data(), ops::affine(before, 0.25), 1e-6);
  EXPECT_ERROR(router.scale_scores(0), "NormRouter: scale_scores by 0, expected a positive factor");
  options.output_activation = ops::Activation::gelu;
  EXPECT_ERROR(NormRouter(options).scale_scores(2), "expected abs, relu or identity");
}

TEST(NormRouter, Errors) {
  NormRouterOptions options = small(0);
  EXPECT_ERROR(NormRouter(options), "NormRouter: depth is 0, expected at least 1");
  options = small(2);
  options.hidden = 0;
  EXPECT_ERROR(NormRouter(options), "NormRouter: hidden is 0");
  const NormRouter router(small(2));
  EXPECT_ERROR(router.forward(Variable(Tensor::zeros({3, 7}))), "NormRouter: x must be [..., 6], got [3, 7]");
}

}  // namespace
}  // namespace switchyard::moe
