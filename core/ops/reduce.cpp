#include "core/ops/reduce.h"

#include "core/kernels/reduce.h"
#include "core/ops/dispatch.h"

namespace switchyard::ops {
namespace {

const char* name_of(Reduction op) {
  switch (op) {
    case Reduction::sum: return "sum";
    case Reduction::mean: return "mean";
    case Reduction::max: return "max";
  }
  fail("reduce: no such reduction");
}

}  // namespace

Tensor reduce(Reduction op, const Tensor& x, const Shape& axes, bool keep_axes) {
  const char* name = name_of(op);
  check(x.defined(), name, ": the tensor is undefined");
  check(op != Reduction::mean || is_floating(x.dtype()), name, ": expected a floating dtype (f32, f64, bf16), got ",
        x.dtype());
  Shape kept = x.shape();
  if (axes.empty()) kept.assign(kept.size(), 1);
  for (std::int64_t& axis : Shape(axes)) kept[axis = normalize_axis(name, axis, x.rank())] = 1;
  check(op != Reduction::max || x.numel() > 0 || kept.numel() == 0, name, ": no elements to choose from in shape ",
        x.shape());
  const bool counts = op == Reduction::sum && !is_floating(x.dtype());
  const Tensor out = Tensor::empty(kept, counts ? DType::i64 : x.dtype(), x.device());
  if (out.numel() > 0) SWITCHYARD_DISPATCH(x.device(), reduce, op, x, out);
  if (keep_axes) return out;
  Shape shape;
  for (std::int64_t i = 0; i < x.rank(); ++i) {
    bool reduced = axes.empty();
    for (const std::int64_t axis : axes) reduced = reduced || normalize_axis(name, axis, x.rank()) == i;
    if (!reduced) shape.push_back(kept[i]);
  }
  return out.view(shape);
}

Tensor sum(const Tensor& x, const Shape& axes, bool keep_axes) { return reduce(Reduction::sum, x, axes, keep_axes); }

Tensor mean(const Tensor& x, const Shape& axes, bool keep_axes) { return reduce(Reduction::mean, x, axes, keep_axes); }

Tensor sum_to(const Tensor& x, const Shape& shape) {
  check(x.defined(), "sum_to: the tensor is undefined");
  if (x.shape() == shape) return x;
  check(shape.rank() <= x.rank() && broadcast_shapes("sum_to", x.shape(), shape) == x.shape(), "sum_to: shape ", shape,
        " does not broadcast to ", x.shape());
  const std::int64_t lead = x.rank() - shape.rank();
  Shape axes;
  for (std::int64_t i = 0; i < x.rank(); ++i)
    if (i < lead || (shape[i - lead] == 1 && x.size(i) != 1)) axes.push_back(i);
  return axes.empty() ? x.reshape(shape) : sum(x, axes, true).view(shape);
}

Tensor argmax(const Tensor& x) {
  check(x.defined(), "argmax: the tensor is undefined");
  check(x.rank() >= 1 && x.size(-1) >= 1, "argmax: needs a last axis with elements, shape is ", x.shape());
  Shape shape = x.shape();
  shape.pop_back();
  const Tensor out = Tensor::empty(shape, DType::i64, x.device());
  if (out.numel() > 0) SWITCHYARD_DISPATCH(x.device(), argmax, x.contiguous(), out);
  return out;
}

Tensor count_nonfinite(const Tensor& x) {
  check(x.defined(), "count_nonfinite: the tensor is undefined");
  check(is_floating(x.dtype()), "count_nonfinite: expected a floating dtype (f32, f64, bf16), got ", x.dtype());
  const Tensor out = Tensor::empty({1}, DType::i64, x.device());
  SWITCHYARD_DISPATCH(x.device(), count_nonfinite, x.contiguous(), out);
  return out;
}

}  // namespace switchyard::ops
