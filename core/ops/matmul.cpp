#include "core/ops/matmul.h"

#include <algorithm>

#include "core/kernels/matmul.h"
#include "core/ops/dispatch.h"
#include "core/ops/norm.h"

namespace switchyard::ops {
namespace {

// One axis that the product is repeated along: its size, and its strides in a, b and out.
struct BatchAxis {
  std::int64_t size, a, b, out;
};

void check_operands(const char* op, const Tensor& a, const Tensor& b) {
  check(a.defined() && b.defined(), op, ": an undefined tensor");
  check(is_floating(a.dtype()), op, ": expected a floating dtype (f32, f64, bf16), got ", a.dtype());
  check(a.dtype() == b.dtype(), op, ": dtypes differ: ", a.dtype(), " x ", b.dtype());
  check(a.device() == b.device(), op, ": devices differ: ", a.device(), " x ", b.device());
}

void check_out_dtype(const char* op, DType out, DType operands) {
  check(out == operands || out == compute_dtype(operands), op, ": out is ", out, ", expected ", operands, " or ",
        compute_dtype(operands));
}

bool spans(std::int64_t unit_stride, std::int64_t stride, std::int64_t size) {
  return unit_stride == 1 && stride >= std::max<std::int64_t>(size, 1);
}

// x itself where its last two axes have strides that a BLAS can express, else a dense copy.
Tensor matrix_operand(const Tensor& x) {
  if (x.is_contiguous()) return x.view(x.shape());  // restates the strides of axes of size 1
  if (spans(x.stride(-1), x.stride(-2), x.size(-1)) || spans(x.stride(-2), x.stride(-1), x.size(-2))) return x;
  return x.contiguous();
}

// The batch axes, innermost first, merged wherever they lie back to back in a and b (out is dense).
boost::container::small_vector<BatchAxis, 4> batch_axes(const Tensor& a, const Tensor& b, const Tensor& out) {
  boost::container::small_vector<BatchAxis, 4> axes;
  for (std::int64_t i = out.rank() - 3; i >= 0; --i) {
    if (out.size(i) == 1) continue;
    const BatchAxis axis{out.size(i), a.stride(i), b.stride(i), out.stride(i)};
    if (!axes.empty() && axis.a == axes.back().a * axes.back().size && axis.b == axes.back().b * axes.back().size) {
      axes.back().size *= axis.size;
    } else {
      axes.push_back(axis);
    }
  }
  return axes;
}

// `count` matrices of x, `batch_stride` apart, from the one `offset` elements after the first element of x.
Tensor matrices(const Tensor& x, std::int64_t offset, std::int64_t count, std::int64_t batch_stride, std::int64_t rows,
                std::int64_t row_stride, std::int64_t columns, std::int64_t column_stride) {
  offset += (x.raw() - x.storage()->data()) / static_cast<std::int64_t>(size_of(x.dtype()));
  return Tensor::view_of(x.storage(), {count, rows, columns}, {batch_stride, row_stride, column_stride}, offset,
                         x.dtype());
}

void multiply_batched(const Tensor& a, const Tensor& b, const Tensor& out) {
  const std::int64_t k = a.size(-1), n = b.size(-1), a_columns = a.stride(-1);
  std::int64_t m = a.size(-2), a_rows = a.stride(-2);
  auto axes = batch_axes(a, b, out);

  // One b for a whole axis of a: its rows join those of the matrix, and many small products become one large one.
  if (!axes.empty() && axes[0].b == 0 && (m == 1 || axes[0].a == m * a_rows)) {
    const std::int64_t rows = m * axes[0].size, stride = m == 1 ? axes[0].a : a_rows;
    if (spans(a_columns, stride, k) || spans(stride, a_columns, rows)) {
      m = rows;
      a_rows = stride;
      axes.erase(axes.begin());
    }
  }

  // The kernel repeats along one axis: it gets the longest, the others are walked here.
  BatchAxis batch{1, 0, 0, 0};
  const auto longest = std::ranges::max_element(axes, {}, &BatchAxis::size);
  if (longest != axes.end()) {
    batch = *longest;
    axes.erase(longest);
  }
  std::int64_t repeats = 1;
  for (const BatchAxis& axis : axes) repeats *= axis.size;
  for (std::int64_t i = 0; i < repeats; ++i) {
    std::int64_t a_at = 0, b_at = 0, out_at = 0, rest = i;
    for (const BatchAxis& axis : axes) {
      const std::int64_t index = rest % axis.size;
      rest /= axis.size;
      a_at += index * axis.a;
      b_at += index * axis.b;
      out_at += index * axis.out;
    }
    const Tensor a_part = matrices(a, a_at, batch.size, batch.a, m, a_rows, k, a_columns);
    const Tensor b_part = matrices(b, b_at, batch.size, batch.b, k, b.stride(-2), n, b.stride(-1));
    const Tensor out_part = matrices(out, out_at, batch.size, batch.out, m, n, n, 1);
    SWITCHYARD_DISPATCH(out.device(), matmul, a_part, b_part, out_part, 1.0, 0.0);
  }
}

Shape leading_axes(const Tensor& x, std::int64_t dropped) {
  return Shape(x.shape().begin(), x.shape().end() - dropped);
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
  check_operands("matmul", a, b);
  check(a.rank() >= 2 && b.rank() >= 2, "matmul: needs at least two axes: ", a.shape(), " x ", b.shape());
  check(a.size(-1) == b.size(-2), "matmul: inner sizes differ: ", a.shape(), " x ", b.shape());
  const Shape batch = broadcast_shapes("matmul", leading_axes(a, 2), leading_axes(b, 2));
  const auto with_matrix = [&](std::int64_t rows, std::int64_t columns) {
    Shape shape = batch;
    shape.push_back(rows);
    shape.push_back(columns);
    return shape;
  };
  const Tensor out = Tensor::empty(with_matrix(a.size(-2), b.size(-1)), a.dtype(), a.device());
  if (out.numel() == 0) return out;
  if (a.size(-1) == 0) {
    out.fill(0);
    return out;
  }
  multiply_batched(matrix_operand(a).broadcast_to(with_matrix(a.size(-2), a.size(-1))),
                   matrix_operand(b).broadcast_to(with_matrix(b.size(-2), b.size(-1))), out);
  return out;
}

void matmul_into(const Tensor& a, const Tensor& b, const Tensor& out, double alpha, double beta) {
  check_operands("matmul_into", a, b);
  check(out.defined() && out.device() == a.device(), "matmul_into: out must be defined and on ", a.device());
  check_out_dtype("matmul_into", out.dtype(), a.dtype());
  check(a.rank() == 2 && b.rank() == 2 && a.size(1) == b.size(0) && out.shape() == Shape{a.size(0), b.size(1)},
        "matmul_into: shapes do not fit: ", a.shape(), " x ", b.shape(), " -> ", out.shape());
  check(out.size(1) <= 1 || (out.stride(1) == 1 && (out.size(0) <= 1 || out.stride(0) >= out.size(1))),
        "matmul_into: out needs dense rows, its strides are ", out.strides());
  if (out.numel() == 0) return;
  const Tensor to = matrices(out, 0, 1, 0, out.size(0), std::max(out.stride(0), out.size(1)), out.size(1), 1);
  SWITCHYARD_DISPATCH(out.device(), matmul, matrix_operand(a).unsqueeze(0), matrix_operand(b).unsqueeze(0), to, alpha,
                      beta);
}

Tensor linear(const Tensor& x, const Tensor& w, const Tensor& bias, std::optional<DType> out_dtype,
              Activation activation) {
  check_operands("linear", x, w);
  check(x.rank() >= 1 && w.rank() == 2 && x.size(-1) == w.size(1), "linear: expected x [..., k] and w [m, k], got ",
        x.shape(), " and ", w.shape());
  if (bias.defined()) {
    check_operands("linear", w, bias);
    check(bias.shape() == Shape{w.size(0)}, "linear: expected bias ", Shape{w.size(0)}, ", got ", bias.shape());
  }
  const DType dtype = out_dtype.value_or(x.dtype());
  check_out_dtype("linear", dtype, x.dtype());
  Shape shape = leading_axes(x, 1);
  const std::int64_t rows = shape.numel();
  shape.push_back(w.size(0));
  const Tensor out = Tensor::empty(shape, dtype, x.device());
  if (out.numel() == 0) return out;
  Tensor flat = x.reshape({rows, x.size(-1)});
  if (!spans(flat.stride(1), flat.stride(0), flat.size(1))) flat = matrix_operand(flat.contiguous());
  SWITCHYARD_DISPATCH(x.device(), linear, flat, matrix_operand(w), dense(bias), activation,
                      out.view({rows, w.size(0)}));
  return out;
}

}  // namespace switchyard::ops
