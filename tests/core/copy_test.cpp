#include "core/ops/copy.h"

#include <cmath>

#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using namespace testing;

/// What converting a small value to a dtype and reading it back gives.
double converted(double value, DType dtype) {
  switch (dtype) {
    case DType::f64: return value;
    case DType::f32: return static_cast<float>(value);
    case DType::bf16: return static_cast<float>(bfloat16(static_cast<float>(value)));
    case DType::boolean: return value != 0;
    default: return std::trunc(value);
  }
}

TEST(Copy, ConvertsBetweenAllDTypesAndLayouts) {
  for (const DType from : kAllDTypes)
    for (const DType to : kAllDTypes) {
      const Tensor x = random_tensor({3, 5, 7}, 1, from, -20, 20);
      for (const Tensor& source : layouts(x)) {
        const Tensor expected = tensor_of(x.shape(), [&](const Shape& i) { return converted(element(source, i), to); });
        for (const Tensor& target : layouts(Tensor::zeros(x.shape(), to))) {
          ops::copy(source, target);
          const Tensor actual = tensor_of(x.shape(), [&](const Shape& i) { return element(target, i); });
          EXPECT_CLOSE(actual, expected, 0) << from << " to " << to;
        }
      }
    }
}

TEST(Copy, LargeEnoughForAllThreads) {
  const Tensor x = random_tensor({300, 5, 131}, 2, DType::f32);
  const Tensor y = x.permute({2, 0, 1}).contiguous();
  EXPECT_EQ(y.strides(), contiguous_strides(y.shape()));
  double worst = 0;
  for_each_index(y.shape(), [&](const Shape& i) {
    worst = std::max(worst, std::fabs(element(y, i) - element(x, {i[1], i[2], i[0]})));
  });
  EXPECT_EQ(worst, 0);
  EXPECT_CLOSE(x.to(DType::f64), x, 0);
}

TEST(Copy, Broadcasts) {
  const Tensor x = random_tensor({4, 1}, 3);
  const Tensor to = Tensor::zeros({2, 4, 3});
  to.copy_from(x);
  for_each_index(to.shape(), [&](const Shape& i) {
    EXPECT_EQ(element(to, i), static_cast<float>(element(x, {i[1], 0})));
  });
  to.copy_from(Tensor::scalar(7));
  EXPECT_CLOSE(to, Tensor::full({2, 4, 3}, 7), 0);
}

TEST(Copy, OtherElementsStay) {
  const Tensor block = Tensor::zeros({6, 6});
  block.slice(0, 1, 6, 2).slice(1, 2, 4).fill(1);
  EXPECT_EQ(block.to_vector<std::int32_t>(),
            (std::vector<std::int32_t>{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0,
                                       0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0}));
}

TEST(Copy, EmptyTensors) {
  EXPECT_EQ(Tensor::zeros({0, 3}).to(DType::i64).shape(), Shape({0, 3}));
  EXPECT_EQ(Tensor::zeros({2, 0}).transpose(0, 1).contiguous().shape(), Shape({0, 2}));
  Tensor::zeros({0}).fill(3);
}

TEST(Copy, SpecialValues) {
  const Tensor x = Tensor::from<double>({INFINITY, -INFINITY, NAN, 1e300, -0.0}, {5});
  const auto values = x.to(DType::bf16).to_vector<float>();
  EXPECT_EQ(values[0], INFINITY);
  EXPECT_EQ(values[1], -INFINITY);
  EXPECT_TRUE(std::isnan(values[2]));
  EXPECT_EQ(values[3], INFINITY);
  EXPECT_TRUE(std::signbit(values[4]));
  EXPECT_EQ(x.to(DType::boolean).to_vector<std::int32_t>(), (std::vector<std::int32_t>{1, 1, 1, 1, 0}));
}

TEST(Copy, Errors) {
  EXPECT_ERROR(ops::copy(Tensor::zeros({3}), Tensor::zeros({2, 4})), "[3]");
  EXPECT_ERROR(ops::copy(Tensor::zeros({2, 4}), Tensor::zeros({4})), "[2, 4]");
  EXPECT_ERROR(ops::copy(Tensor(), Tensor::zeros({4})), "copy: an undefined tensor");
  EXPECT_ERROR(ops::fill(Tensor(), 0), "fill: the tensor is undefined");
}

TEST(Fill, AllDTypes) {
  for (const DType dtype : kAllDTypes) {
    EXPECT_CLOSE(Tensor::full({3, 4}, 2.75, dtype), Tensor::full({3, 4}, converted(2.75, dtype), DType::f64), 0)
        << dtype;
    EXPECT_CLOSE(Tensor::zeros({70000}, dtype), Tensor::from(std::vector<double>(70000), {70000}), 0) << dtype;
  }
}

}  // namespace
}  // namespace switchyard
