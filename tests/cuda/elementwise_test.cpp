// Elementwise ops, reductions, norms, softmax and losses: the GPU against the CPU.

#include "core/ops/elementwise.h"

#include "core/ops/loss.h"
#include "core/ops/norm.h"
#include "core/ops/random.h"
#include "core/ops/reduce.h"
#include "core/ops/softmax.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;
using ops::Binary;
using ops::Unary;

const std::vector<Shape> kShapes = {{1}, {7}, {4, 8}, {3, 5, 7}, {257, 129}, {2, 1, 6, 33}, {0, 4}};

TEST(CudaElementwise, EveryUnaryFunctionInEveryLayout) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (const Unary op :
         {Unary::identity, Unary::negate, Unary::exp, Unary::square, Unary::abs, Unary::relu, Unary::gelu,
          Unary::gelu_tanh, Unary::silu, Unary::sigmoid, Unary::tanh, Unary::softplus, Unary::log, Unary::sqrt})
      for (const Shape& shape : kShapes) {
        const bool positive = op == Unary::log || op == Unary::sqrt;
        const Tensor x = random_tensor(shape, 1, dtype, positive ? 0.1 : -3, 3), dy = random_tensor(shape, 2, dtype);
        for (const Tensor& layout : layouts(x))
          expect_parity([&](const Tensors& in) { return Tensors{ops::unary(op, in[0])}; }, {layout}, dtype, "unary");
        expect_parity([&](const Tensors& in) { return Tensors{ops::unary_backward(op, in[0], in[1])}; }, {dy, x}, dtype,
                      "unary_backward");
      }
}

TEST(CudaElementwise, BinaryWithBroadcasting) {
  SKIP_WITHOUT_GPU();
  const std::vector<std::pair<Shape, Shape>> pairs = {{{4, 8}, {4, 8}},    {{4, 8}, {8}},          {{4, 1}, {1, 8}},
                                                      {{2, 3, 5}, {3, 1}}, {{300, 257}, {300, 1}}, {{5}, {}}};
  for (const DType dtype : kFloatingDTypes)
    for (const auto& [a, b] : pairs)
      for (const Binary op : {Binary::add, Binary::subtract, Binary::multiply, Binary::divide, Binary::maximum,
                              Binary::minimum, Binary::equal, Binary::less, Binary::less_equal})
        expect_parity([&](const Tensors& in) { return Tensors{ops::binary(op, in[0], in[1])}; },
                      {random_tensor(a, 1, dtype, -2, 2), random_tensor(b, 2, dtype, 0.5, 2)}, dtype, "binary");
}

TEST(CudaElementwise, AffineWhereAccumulateAndConversions) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes) {
    const Tensor x = random_tensor({33, 65}, 1, dtype), y = random_tensor({33, 65}, 2, dtype);
    const Tensor condition = random_tensor({33, 65}, 3, DType::boolean);
    const auto op = [](const Tensors& in) {
      const Tensor sum = in[0].clone();
      ops::accumulate(sum, in[1], -0.5);
      return Tensors{ops::affine(in[0], 2.5, -1), ops::where(in[2], in[0], in[1]), sum};
    };
    expect_parity(op, {x, y, condition}, dtype, "affine, where, accumulate");
    for (const DType to : kAllDTypes)
      expect_parity(
          [&](const Tensors& in) {
            return Tensors{in[0].to(to), in[0].transpose(0, 1).to(to)};
          },
          {random_tensor({33, 65}, 4, dtype, -9, 9)}, dtype, "conversion");
  }
}

TEST(CudaReduce, SumsMeansAndMaximaOverAnyAxes) {
  SKIP_WITHOUT_GPU();
  const std::vector<std::pair<Shape, Shape>> cases = {
      {{5}, {}},        {{300, 257}, {0}}, {{300, 257}, {1}}, {{300, 257}, {}}, {{4, 5, 6}, {0, 2}},
      {{4, 5, 6}, {1}}, {{70000, 3}, {0}}, {{2, 40000}, {1}}, {{1, 9}, {0}},    {{40, 8, 16}, {0, 1}}};
  for (const DType dtype : kFloatingDTypes)
    for (const auto& [shape, axes] : cases) {
      const auto op = [&, reduced = axes](const Tensors& in) {
        return Tensors{ops::sum(in[0], reduced), ops::mean(in[0], reduced, true),
                       ops::reduce(ops::Reduction::max, in[0], reduced)};
      };
      expect_parity(op, {random_tensor(shape, 1, dtype, 0, 1)}, dtype, "reduce");
    }
  expect_parity(
      [](const Tensors& in) {
        return Tensors{ops::sum(in[0], {0}), ops::sum(in[1])};
      },
      {random_tensor({50, 7}, 1, DType::boolean), random_tensor({50, 7}, 1, DType::i32, -100, 100)}, DType::i32,
      "integer sums");
  expect_parity(
      [](const Tensors& in) {
        return Tensors{ops::argmax(in[0]), ops::count_nonfinite(ops::unary(Unary::log, in[0]))};
      },
      {random_tensor({50, 77}, 1, DType::f32)}, DType::f32, "argmax, count_nonfinite");
}

TEST(CudaNorm, LayerNormAndRmsNorm) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (const Shape& shape : {Shape{3, 8}, Shape{65, 412}, Shape{9, 33}, Shape{300, 1024}, Shape{5000, 64},
                               Shape{5, 5000}, Shape{3, 4999}, Shape{1, 8192}}) {
      const Shape width = {shape[1]};
      const auto op = [](const Tensors& in) {
        const auto layer = ops::layer_norm(in[0], in[1], in[2], 1e-5);
        const auto dlayer = ops::layer_norm_backward(in[3], in[0], in[1], true, layer.mean, layer.inverse_deviation);
        const auto added = ops::layer_norm(in[0], in[1], in[2], 1e-5, in[3]);
        const auto dadded =
            ops::layer_norm_backward(in[3], in[0], in[1], false, layer.mean, layer.inverse_deviation, in[4]);
        const auto added_rms = ops::rms_norm(in[0], {}, 1e-6, in[3]);
        const auto rms = ops::rms_norm(in[0], in[1], 1e-6);
        const auto drms = ops::rms_norm_backward(in[3], in[0], in[1], rms.inverse_rms);
        return Tensors{layer.y,
                       layer.mean,
                       layer.inverse_deviation,
                       dlayer.dx,
                       dlayer.dweight,
                       dlayer.dbias,
                       rms.y,
                       rms.inverse_rms,
                       drms.dx,
                       drms.dweight,
                       added.sum,
                       added.y,
                       dadded.dx,
                       dadded.dweight,
                       added_rms.sum,
                       added_rms.y,
                       ops::rms_norm_backward(in[3], in[0], in[1], rms.inverse_rms, in[4]).dx};
      };
      expect_parity(op,
                    {random_tensor(shape, 1, dtype, -1, 2), random_tensor(width, 2, dtype, 0.5, 1.5),
                     random_tensor(width, 3, dtype), random_tensor(shape, 4, dtype), random_tensor(shape, 5, dtype)},
                    dtype, "norms");
    }
}

TEST(CudaSoftmax, ForwardAndBackward) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (const Shape& shape : {Shape{3, 5}, Shape{64, 129}, Shape{5, 3000}}) {
      const auto op = [](const Tensors& in) {
        const Tensor y = ops::softmax(in[0]), log_y = ops::log_softmax(in[0]);
        return Tensors{y, log_y, ops::logsumexp(in[0]), ops::softmax_backward(in[1], y),
                       ops::log_softmax_backward(in[1], log_y)};
      };
      expect_parity(op, {random_tensor(shape, 1, dtype, -4, 4), random_tensor(shape, 2, dtype)}, dtype, "softmax");
    }
}

TEST(CudaLoss, CrossEntropyAndItsFusedForm) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes) {
    std::vector<std::int64_t> ids;
    for (int i = 0; i < 150; ++i) ids.push_back(i % 7 == 3 ? -100 : (i * 37) % 301);
    const Tensor targets = Tensor::from(ids, {150});
    const auto op = [](const Tensors& in) {
      const auto plain = ops::cross_entropy(in[0], in[4], -100, true);
      const auto fused = ops::linear_cross_entropy(in[1], in[2], in[3], in[4], -100, true, 64);
      return Tensors{ops::cross_entropy_per_row(in[0], in[4], -100),
                     plain.loss,
                     plain.dlogits,
                     fused.loss,
                     fused.dx,
                     fused.dw,
                     fused.dbias};
    };
    expect_parity(op,
                  {random_tensor({150, 301}, 1, dtype, -3, 3), random_tensor({150, 40}, 2, dtype),
                   random_tensor({301, 40}, 3, dtype), random_tensor({301}, 4, dtype), targets},
                  dtype, "cross entropy");
  }
}

TEST(CudaRandom, TheSameNumbersAsOnTheCpu) {
  SKIP_WITHOUT_GPU();
  const auto draw = [](Device device) {
    Generator generator(42, device);
    generator.next(1001);
    generator.end_step();
    Tensors drawn = {ops::uniform({1003}, generator.next(1003), -2, 3),
                     ops::bernoulli({77, 3}, generator.next(231), 0.3)};
    const Tensor x = Tensor::ones({5, 333}, DType::f32, device);
    drawn.push_back(ops::dropout(x, generator.next(x.numel()), 0.25));
    EXPECT_EQ(generator.state().position, 251u + 251u + 58u + 417u);
    return drawn;
  };
  const Tensors cpu = draw(Device::cpu()), gpu = draw(Device::cuda());
  for (std::size_t i = 0; i < cpu.size(); ++i) EXPECT_EQ(cpu[i].to_vector<double>(), gpu[i].to_vector<double>());
}

}  // namespace
}  // namespace switchyard
