#include "moe/conversion/projection.h"

#include <cmath>

#include "autograd/gradcheck.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::random_tensor;

TEST(ProjectionWidth, costs_what_the_projection_costs) {
  for (const auto& [inputs, outputs] : {std::pair<std::int64_t, std::int64_t>{768, 768}, {2048, 256}, {40, 412}}) {
    const std::int64_t hidden = projection_width(inputs, outputs, 1);
    // Multiply-adds, biases of the hidden neurons and of the projection included, as in the paper's formula.
    const std::int64_t linear = inputs * outputs + outputs, mlp = hidden * (inputs + outputs + 1);
    EXPECT_LE(2 * std::abs(mlp - linear), inputs + outputs + 1);
  }
  EXPECT_EQ(projection_width(1, 1, 2.25), 2);  // 1.5 and
  EXPECT_EQ(projection_width(1, 1, 3.75), 2);  // 2.5: halves to even
  EXPECT_ERROR(projection_width(8, 8, 0), "projection_width: flops_factor is 0, expected a positive number");
  EXPECT_ERROR(projection_width(8, 8, 0.01), "flops_factor 0.01 leaves no neuron for 8 inputs and 8 outputs");
  EXPECT_ERROR(projection_width(0, 8, 1), "0 inputs and 8 outputs");
}

TEST(ProjectionMlp, bad_options_are_named) {
  EXPECT_ERROR(ProjectionMlp({.inputs = 4, .outputs = 6, .hidden = 3, .residual = true}),
               "a residual connection needs as many outputs as inputs, got 4 inputs and 6 outputs");
  EXPECT_ERROR(ProjectionMlp({.inputs = 4, .outputs = 6}), "4 inputs, 0 hidden neurons and 6 outputs");
  const ProjectionMlp layer({.inputs = 4, .outputs = 6, .hidden = 3});
  EXPECT_ERROR(layer.forward(Variable(Tensor::zeros({2, 5}))), "ProjectionMlp: x must be [..., 4], got [2, 5]");
}

TEST(ProjectionMlp, splits_into_experts) {
  const ProjectionMlp layer({.inputs = 4, .outputs = 6, .hidden = 2});
  const ExpertWeights experts = split_into_experts(layer.weights(), Tensor::from<std::int64_t>({1, 0}, {2}), 2);
  EXPECT_EQ(experts.w1.shape(), (Shape{2, 4, 1}));
  EXPECT_EQ(experts.w2.shape(), (Shape{2, 1, 6}));
}

TEST(DistillationLoss, is_the_mean_square) {
  const Variable student(random_tensor({3, 5}, 1), true);
  const Tensor teacher = random_tensor({3, 5}, 2);
  const auto a = student.data().to_vector<double>(), b = teacher.to_vector<double>();
  double total = 0;
  for (std::size_t i = 0; i < a.size(); ++i) total += (a[i] - b[i]) * (a[i] - b[i]);
  EXPECT_NEAR(distillation_loss(student, teacher).item<double>(), total / 15, 1e-12);
  EXPECT_TRUE(gradcheck([&](const Variables& in) { return distillation_loss(in[0], teacher); }, {student}));
  EXPECT_EQ(distillation_loss(Variable(teacher.to(DType::bf16)), teacher.to(DType::bf16)).dtype(), DType::f32);
  EXPECT_ERROR(distillation_loss(student, teacher.select(0, 0)), "the teacher's output must be [3, 5], got [5]");
}

}  // namespace
}  // namespace switchyard::moe
