#include "autograd/ops/reduce.h"

#include "autograd/node.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/reduce.h"

namespace switchyard {
namespace {

/// `shape` with size 1 on the reduced axes: what a reduced gradient must look like to be broadcast back.
Shape kept_shape(Shape shape, const Shape& axes) {
  if (axes.empty()) return Shape(shape.size(), 1);
  for (const std::int64_t axis : axes) shape[normalize_axis("sum", axis, shape.rank())] = 1;
  return shape;
}

}  // namespace

Variable sum(const Variable& x, const Shape& axes, bool keep_axes) {
  return record("sum", ops::sum(x.data(), axes, keep_axes), {x},
                [from = x.shape(), kept = kept_shape(x.shape(), axes)](const Tensor& dy) {
                  return Gradients{dy.reshape(kept).broadcast_to(from)};
                });
}

Variable mean(const Variable& x, const Shape& axes, bool keep_axes) {
  const Variable total = sum(x, axes, keep_axes);
  check(x.numel() > 0, "mean: no elements in shape ", x.shape());
  return total * (static_cast<double>(total.numel()) / static_cast<double>(x.numel()));
}

}  // namespace switchyard
