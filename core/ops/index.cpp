#include "core/ops/index.h"

#include <algorithm>

#include "core/kernels/index.h"
#include "core/ops/dispatch.h"

namespace switchyard::ops {
namespace {

Shape with_last(const Tensor& x, std::int64_t last) {
  Shape shape(x.shape().begin(), x.shape().end() - 1);
  shape.push_back(last);
  return shape;
}

// Number of rows of the last axis, which may be empty.
std::int64_t leading_size(const Tensor& x) { return Shape(x.shape().begin(), x.shape().end() - 1).numel(); }

void check_index(const char* op, const Tensor& x, const Tensor& index) {
  check(x.defined() && index.defined(), op, ": an undefined tensor");
  check(index.dtype() == DType::i32, op, ": the index is ", index.dtype(), ", expected i32");
  check(x.device() == index.device(), op, ": devices differ: ", x.device(), " and ", index.device());
  check(x.rank() >= 1 && x.rank() == index.rank() &&
            std::equal(x.shape().begin(), x.shape().end() - 1, index.shape().begin()),
        op, ": leading sizes differ: ", x.shape(), " and index ", index.shape());
}

}  // namespace

Tensor embedding(const Tensor& table, const Tensor& ids) {
  check(table.defined() && ids.defined(), "embedding: an undefined tensor");
  check(table.rank() == 2, "embedding: expected a table [rows, width], got ", table.shape());
  check(ids.dtype() == DType::i64, "embedding: ids are ", ids.dtype(), ", expected i64");
  check(table.device() == ids.device(), "embedding: devices differ: ", table.device(), " and ", ids.device());
  Shape shape = ids.shape();
  shape.push_back(table.size(1));
  const Tensor out = Tensor::empty(shape, table.dtype(), table.device());
  if (out.numel() == 0) return out;
  SWITCHYARD_DISPATCH(table.device(), embedding, table.contiguous(), ids.contiguous().view({ids.numel()}),
                      out.view({ids.numel(), table.size(1)}));
  return out;
}

Tensor embedding_backward(const Tensor& dy, const Tensor& ids, std::int64_t rows) {
  check(dy.defined() && ids.defined(), "embedding_backward: an undefined tensor");
  check(is_floating(dy.dtype()), "embedding_backward: expected a floating dtype (f32, f64, bf16), got ", dy.dtype());
  check(ids.dtype() == DType::i64, "embedding_backward: ids are ", ids.dtype(), ", expected i64");
  check(dy.device() == ids.device(), "embedding_backward: devices differ: ", dy.device(), " and ", ids.device());
  check(dy.rank() >= 1 && Shape(dy.shape().begin(), dy.shape().end() - 1) == ids.shape(),
        "embedding_backward: expected dy of shape ids + [width], got ", dy.shape(), " and ids ", ids.shape());
  check(rows >= 0, "embedding_backward: negative number of rows ", rows);
  const std::int64_t width = dy.size(-1), count = ids.numel();
  const Tensor dtable = Tensor::empty({rows, width}, dy.dtype(), dy.device());
  if (dtable.numel() == 0 && dy.numel() == 0) return dtable;
  SWITCHYARD_DISPATCH(dy.device(), embedding_backward, dy.contiguous().view({count, width}),
                      ids.contiguous().view({count}), dtable);
  return dtable;
}

Tensor gather_last(const Tensor& x, const Tensor& index) {
  check_index("gather_last", x, index);
  const Tensor out = Tensor::empty(index.shape(), x.dtype(), x.device());
  if (out.numel() == 0) return out;
  const std::int64_t rows = leading_size(x);
  SWITCHYARD_DISPATCH(x.device(), gather_last, x.contiguous().view({rows, x.size(-1)}),
                      index.contiguous().view({rows, index.size(-1)}), out.view({rows, index.size(-1)}));
  return out;
}

Tensor gather_last_backward(const Tensor& dy, const Tensor& index, std::int64_t size) {
  check_index("gather_last_backward", dy, index);
  check(is_floating(dy.dtype()), "gather_last_backward: expected a floating dtype (f32, f64, bf16), got ", dy.dtype());
  check(dy.shape() == index.shape(), "gather_last_backward: shapes differ: ", dy.shape(), " and index ", index.shape());
  check(size >= 0, "gather_last_backward: negative size ", size);
  const Tensor dx = Tensor::empty(with_last(dy, size), dy.dtype(), dy.device());
  if (dx.numel() == 0 && dy.numel() == 0) return dx;
  const std::int64_t rows = leading_size(dy);
  SWITCHYARD_DISPATCH(dy.device(), gather_last_backward, dy.contiguous().view({rows, dy.size(-1)}),
                      index.contiguous().view({rows, dy.size(-1)}), dx.view({rows, size}));
  return dx;
}

Tensor concat(const std::vector<Tensor>& parts, std::int64_t axis) {
  check(!parts.empty(), "concat: no tensors given");
  for (const Tensor& part : parts) check(part.defined(), "concat: an undefined tensor");
  const Tensor& first = parts[0];
  axis = normalize_axis("concat", axis, first.rank());
  Shape shape = first.shape();
  shape[axis] = 0;
  for (const Tensor& part : parts) {
    check(part.dtype() == first.dtype(), "concat: dtypes differ: ", first.dtype(), " and ", part.dtype());
    check(part.device() == first.device(), "concat: devices differ: ", first.device(), " and ", part.device());
    bool fits = part.rank() == first.rank();
    for (std::int64_t i = 0; fits && i < first.rank(); ++i) fits = i == axis || part.size(i) == first.size(i);
    check(fits, "concat: sizes outside axis ", axis, " differ: ", first.shape(), " and ", part.shape());
    shape[axis] += part.size(axis);
  }
  const Tensor out = Tensor::empty(shape, first.dtype(), first.device());
  std::int64_t begin = 0;
  for (const Tensor& part : parts) {
    const std::int64_t end = begin + part.size(axis);
    out.slice(axis, begin, end).copy_from(part);
    begin = end;
  }
  return out;
}

}  // namespace switchyard::ops
