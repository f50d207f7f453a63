#include "core/ops/softmax.h"

#include "core/kernels/softmax.h"
#include "core/ops/check.h"
#include "core/ops/dispatch.h"

namespace switchyard::ops {
namespace {

void check_gradient(const char* op, const Tensor& dy, const Tensor& y) {
  check_last_axis(op, y);
  check(dy.defined(), op, ": dy is undefined");
  check(dy.shape() == y.shape(), op, ": shapes of dy and y differ: ", dy.shape(), " and ", y.shape());
  check(dy.dtype() == y.dtype(), op, ": dtypes of dy and y differ: ", dy.dtype(), " and ", y.dtype());
  check(dy.device() == y.device(), op, ": dy on ", dy.device(), ", y on ", y.device());
}

/// Dense, seen as rows of the last axis.
Tensor rows(const Tensor& x) { return x.contiguous().view({-1, x.size(-1)}); }

}  // namespace

Tensor softmax(const Tensor& x) {
  check_last_axis("softmax", x);
  const Tensor y = Tensor::empty_like(x);
  if (y.numel() > 0) SWITCHYARD_DISPATCH(x.device(), softmax, rows(x), rows(y));
  return y;
}

Tensor softmax_backward(const Tensor& dy, const Tensor& y) {
  check_gradient("softmax backward", dy, y);
  const Tensor dx = Tensor::empty_like(y);
  if (dx.numel() > 0) SWITCHYARD_DISPATCH(y.device(), softmax_backward, rows(dy), rows(y), rows(dx));
  return dx;
}

Tensor log_softmax(const Tensor& x) {
  check_last_axis("log_softmax", x);
  const Tensor y = Tensor::empty_like(x);
  if (y.numel() > 0) SWITCHYARD_DISPATCH(x.device(), log_softmax, rows(x), rows(y));
  return y;
}

Tensor log_softmax_backward(const Tensor& dy, const Tensor& y) {
  check_gradient("log_softmax backward", dy, y);
  const Tensor dx = Tensor::empty_like(y);
  if (dx.numel() > 0) SWITCHYARD_DISPATCH(y.device(), log_softmax_backward, rows(dy), rows(y), rows(dx));
  return dx;
}

Tensor logsumexp(const Tensor& x) {
  check_last_axis("logsumexp", x);
  Shape shape = x.shape();
  shape.pop_back();
  const Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  if (y.numel() > 0) SWITCHYARD_DISPATCH(x.device(), logsumexp, rows(x), y.view({-1}));
  return y;
}

}  // namespace switchyard::ops
