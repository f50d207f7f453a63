#include "core/shape.h"

#include "tests/support/close.h"

namespace switchyard {
namespace {

TEST(Shape, CountsAndPrints) {
  EXPECT_EQ(Shape({2, 3, 4}).numel(), 24);
  EXPECT_EQ(Shape({}).numel(), 1);
  EXPECT_EQ(Shape({2, 0, 4}).numel(), 0);
  EXPECT_EQ(Shape({2, 3}).rank(), 2);
  std::ostringstream text;
  text << Shape({2, 3}) << Shape({}) << Shape({7});
  EXPECT_EQ(text.str(), "[2, 3][][7]");
}

TEST(Shape, ContiguousStrides) {
  EXPECT_EQ(contiguous_strides({2, 3, 4}), Shape({12, 4, 1}));
  EXPECT_EQ(contiguous_strides({5}), Shape({1}));
  EXPECT_EQ(contiguous_strides({}), Shape({}));
}

TEST(Shape, NormalizesAxes) {
  EXPECT_EQ(normalize_axis("op", -1, 3), 2);
  EXPECT_EQ(normalize_axis("op", -3, 3), 0);
  EXPECT_EQ(normalize_axis("op", 2, 3), 2);
  EXPECT_ERROR(normalize_axis("op", 3, 3), "op: axis 3 is outside a tensor of rank 3");
  EXPECT_ERROR(normalize_axis("op", -4, 3), "op: axis -4");
  EXPECT_ERROR(normalize_axis("op", 0, 0), "op: axis 0 is outside a tensor of rank 0");
}

TEST(Shape, Broadcasts) {
  EXPECT_EQ(broadcast_shapes("op", {2, 3}, {3}), Shape({2, 3}));
  EXPECT_EQ(broadcast_shapes("op", {2, 1, 4}, {5, 1}), Shape({2, 5, 4}));
  EXPECT_EQ(broadcast_shapes("op", {}, {2, 2}), Shape({2, 2}));
  EXPECT_EQ(broadcast_shapes("op", {0, 3}, {1, 3}), Shape({0, 3}));
  EXPECT_ERROR(broadcast_shapes("op", {2, 3}, {2}), "op: shapes do not broadcast: [2, 3] and [2]");
  EXPECT_ERROR(broadcast_shapes("op", {0}, {2}), "do not broadcast");
}

}  // namespace
}  // namespace switchyard
