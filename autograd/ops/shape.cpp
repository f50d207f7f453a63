#include "autograd/ops/shape.h"

#include "autograd/node.h"
#include "core/ops/index.h"
#include "core/ops/reduce.h"

namespace switchyard {

Variable reshape(const Variable& x, const Shape& shape) {
  return record("reshape", x.data().reshape(shape), {x},
                [from = x.shape()](const Tensor& dy) { return Gradients{dy.reshape(from)}; });
}

Variable transpose(const Variable& x, std::int64_t axis_a, std::int64_t axis_b) {
  return record("transpose", x.data().transpose(axis_a, axis_b), {x},
                [axis_a, axis_b](const Tensor& dy) { return Gradients{dy.transpose(axis_a, axis_b)}; });
}

Variable permute(const Variable& x, const Shape& axes) {
  Shape inverse(axes.size(), 0);
  Tensor y = x.data().permute(axes);
  for (std::int64_t i = 0; i < axes.rank(); ++i) inverse[normalize_axis("permute", axes[i], axes.rank())] = i;
  return record("permute", y, {x}, [inverse](const Tensor& dy) { return Gradients{dy.permute(inverse)}; });
}

Variable slice(const Variable& x, std::int64_t axis, std::int64_t begin, std::int64_t end) {
  return record("slice", x.data().slice(axis, begin, end), {x}, [from = x.shape(), axis, begin, end](const Tensor& dy) {
    Tensor dx = Tensor::zeros(from, dy.dtype(), dy.device());
    dx.slice(axis, begin, end).copy_from(dy);
    return Gradients{dx};
  });
}

Variable broadcast_to(const Variable& x, const Shape& shape) {
  return record("broadcast_to", x.data().broadcast_to(shape), {x},
                [from = x.shape()](const Tensor& dy) { return Gradients{ops::sum_to(dy, from)}; });
}

Variable concat(const Variables& parts, std::int64_t axis) {
  std::vector<Tensor> data;
  std::vector<std::int64_t> sizes;
  for (const Variable& part : parts) {
    data.push_back(part.data());
    sizes.push_back(part.size(axis));
  }
  return record("concat", ops::concat(data, axis), parts, [sizes, axis](const Tensor& dy) {
    Gradients gradients;
    std::int64_t begin = 0;
    for (const std::int64_t size : sizes) {
      gradients.push_back(dy.slice(axis, begin, begin + size));
      begin += size;
    }
    return gradients;
  });
}

}  // namespace switchyard
