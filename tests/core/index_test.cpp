#include "core/ops/index.h"

#include <gtest/gtest.h>

#include "tests/support/close.h"
#include "tests/support/device.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using testing::element;
using testing::for_each_index;
using testing::kAllDTypes;
using testing::kFloatingDTypes;
using testing::layouts;
using testing::random_tensor;
using testing::tensor_of;
using testing::tolerance;

Tensor random_ids(const Shape& shape, std::int64_t rows, std::uint64_t seed) {
  return random_tensor(shape, seed, DType::f64, 0, static_cast<double>(rows)).to(DType::i64);
}

Shape without_last(const Shape& shape) { return Shape(shape.begin(), shape.end() - 1); }

std::int64_t integer(const Tensor& x, const Shape& index) { return static_cast<std::int64_t>(element(x, index)); }

TEST(Embedding, PicksRows) {
  for (const DType dtype : kAllDTypes)
    for (const Shape& shape : {Shape{}, Shape{7}, Shape{3, 5}, Shape{2, 3, 2}, Shape{0}, Shape{2, 0}})
      for (const Tensor& table : layouts(random_tensor({11, 5}, 1, dtype, -9, 9)))
        for (const Tensor& ids : layouts(random_ids(shape, 11, 2))) {
          Shape out_shape = shape;
          out_shape.push_back(5);
          const Tensor expected = tensor_of(out_shape, [&](const Shape& at) {
            return element(table, {integer(ids, without_last(at)), at.back()});
          });
          const Tensor out = ops::embedding(table, ids);
          EXPECT_EQ(out.dtype(), dtype);
          EXPECT_CLOSE(out, expected, 0);
        }
}

TEST(Embedding, BackwardSumsRows) {
  for (const DType dtype : kFloatingDTypes)
    for (const auto& [rows, width, count] :
         {std::tuple<int, int, int>{5, 3, 40}, {200, 130, 300}, {3, 64, 1}, {4, 1, 0}, {70, 0, 3}})
      for (const Tensor& dy : layouts(random_tensor({count, width}, 3, dtype))) {
        const Tensor ids = random_ids({count}, rows, 4);
        std::vector<double> sums(static_cast<std::size_t>(rows * width));
        for_each_index({count, width}, [&](const Shape& at) {
          sums[static_cast<std::size_t>(integer(ids, {at[0]}) * width + at[1])] += element(dy, at);
        });
        EXPECT_CLOSE(ops::embedding_backward(dy, ids, rows), Tensor::from(sums, {rows, width}), tolerance(dtype));
      }
}

TEST(Embedding, BackwardSumsBf16InFloat) {
  const Tensor dy = Tensor::full({1000, 2}, 0.5, DType::bf16), ids = Tensor::zeros({1000}, DType::i64);
  EXPECT_EQ(ops::embedding_backward(dy, ids, 2).to_vector<float>(), (std::vector<float>{500, 500, 0, 0}));
}

TEST(Embedding, IdsOutsideTheTable) {
  SKIP_ON_GPU("the host does not read ids there");
  const Tensor table = Tensor::zeros({256, 4});
  EXPECT_ERROR(ops::embedding(table, Tensor::from<std::int64_t>({0, 1, 2, 3, 4, 300}, {2, 3})),
               "embedding: id 300 at position 5 is outside a table of 256 rows");
  EXPECT_ERROR(ops::embedding(table, Tensor::from<std::int64_t>({-1}, {1})),
               "embedding: id -1 at position 0 is outside a table of 256 rows");
  EXPECT_ERROR(ops::embedding_backward(Tensor::zeros({2, 4}), Tensor::from<std::int64_t>({0, 9}, {2}), 9),
               "embedding_backward: id 9 at position 1 is outside a table of 9 rows");
}

TEST(Embedding, Errors) {
  const Tensor table = Tensor::zeros({256, 4});
  EXPECT_ERROR(ops::embedding(table, Tensor::zeros({2}, DType::i32)), "embedding: ids are i32, expected i64");
  EXPECT_ERROR(ops::embedding(Tensor::zeros({4}), Tensor::zeros({2}, DType::i64)),
               "embedding: expected a table [rows, width], got [4]");
  EXPECT_ERROR(ops::embedding_backward(Tensor::zeros({3, 4}), Tensor::zeros({2}, DType::i64), 9),
               "embedding_backward: expected dy of shape ids + [width], got [3, 4] and ids [2]");
  EXPECT_ERROR(ops::embedding(table, Tensor()), "embedding: an undefined tensor");
}

TEST(GatherLast, PicksElements) {
  for (const DType dtype : kAllDTypes)
    for (const Shape& shape : {Shape{8}, Shape{5, 8}, Shape{2, 3, 8}, Shape{0, 8}})
      for (const Tensor& x : layouts(random_tensor(shape, 1, dtype, -9, 9))) {
        Shape index_shape = shape;
        index_shape.back() = 3;
        const Tensor index = random_tensor(index_shape, 2, DType::f64, 0, 8).to(DType::i32);
        const Tensor expected = tensor_of(index_shape, [&](const Shape& at) {
          Shape from = at;
          from.back() = integer(index, at);
          return element(x, from);
        });
        EXPECT_CLOSE(ops::gather_last(x, index), expected, 0);
      }
}

TEST(GatherLast, BackwardAddsWhereItPicked) {
  for (const DType dtype : kFloatingDTypes)
    for (const Tensor& dy : layouts(random_tensor({2, 6, 5}, 1, dtype))) {
      const Tensor index = random_tensor({2, 6, 5}, 2, DType::f64, 0, 4).to(DType::i32);  // five of four: some repeat
      const Tensor expected = tensor_of({2, 6, 4}, [&](const Shape& at) {
        double sum = 0;
        for (std::int64_t j = 0; j < 5; ++j)
          if (integer(index, {at[0], at[1], j}) == at[2]) sum += element(dy, {at[0], at[1], j});
        return sum;
      });
      EXPECT_CLOSE(ops::gather_last_backward(dy, index, 4), expected, tolerance(dtype));
    }
  EXPECT_EQ(ops::gather_last_backward(Tensor::zeros({2, 0}), Tensor::zeros({2, 0}, DType::i32), 3).to_vector<float>(),
            std::vector<float>(6, 0.0f));
}

TEST(GatherLast, IndicesOutsideTheAxis) {
  SKIP_ON_GPU("the host does not read indices there");
  EXPECT_ERROR(ops::gather_last(Tensor::zeros({2, 8}), Tensor::from<std::int32_t>({0, 7, 1, 8}, {2, 2})),
               "gather_last: index 8 at position 3 is outside a last axis of 8");
}

TEST(GatherLast, Errors) {
  const Tensor x = Tensor::zeros({2, 8});
  EXPECT_ERROR(ops::gather_last(x, Tensor::zeros({2, 2}, DType::i64)), "gather_last: the index is i64, expected i32");
  EXPECT_ERROR(ops::gather_last(x, Tensor::zeros({3, 2}, DType::i32)),
               "gather_last: leading sizes differ: [2, 8] and index [3, 2]");
  EXPECT_ERROR(ops::gather_last_backward(x, Tensor::zeros({2, 3}, DType::i32), 9),
               "gather_last_backward: shapes differ: [2, 8] and index [2, 3]");
}

TEST(Concat, JoinsAlongAnyAxis) {
  for (const DType dtype : kAllDTypes)
    for (std::int64_t axis = 0; axis < 3; ++axis) {
      Shape a_shape{2, 3, 4}, b_shape = a_shape, empty_shape = a_shape;
      b_shape[axis] = 5;
      empty_shape[axis] = 0;
      const Tensor b = random_tensor(b_shape, 2, dtype, -9, 9), none = Tensor::empty(empty_shape, dtype);
      for (const Tensor& a : layouts(random_tensor(a_shape, 1, dtype, -9, 9))) {
        Shape shape = a_shape;
        shape[axis] += 5;
        const Tensor expected = tensor_of(shape, [&](const Shape& index) {
          Shape at = index;
          if (at[axis] < a.size(axis)) return element(a, at);
          at[axis] -= a.size(axis);
          return element(b, at);
        });
        const Tensor joined = ops::concat({a, none, b}, axis);
        EXPECT_EQ(joined.dtype(), dtype);
        EXPECT_CLOSE(joined, expected, 0);
        EXPECT_CLOSE(ops::concat({a, b}, axis - 3), expected, 0);
      }
    }
}

TEST(Concat, Errors) {
  const Tensor a = Tensor::zeros({2, 3});
  EXPECT_ERROR(ops::concat({}, 0), "concat: no tensors given");
  EXPECT_ERROR(ops::concat({a, Tensor::zeros({3, 3})}, 1), "concat: sizes outside axis 1 differ: [2, 3] and [3, 3]");
  EXPECT_ERROR(ops::concat({a, Tensor::zeros({2})}, 0), "concat: sizes outside axis 0 differ: [2, 3] and [2]");
  EXPECT_ERROR(ops::concat({a, Tensor::zeros({2, 3}, DType::bf16)}, 0), "concat: dtypes differ: f32 and bf16");
  EXPECT_ERROR(ops::concat({a, a}, 2), "concat");
}

}  // namespace
}  // namespace switchyard
