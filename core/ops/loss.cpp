#include "core/ops/loss.h"

#include <algorithm>

#include "core/kernels/loss.h"
#include "core/ops/copy.h"
#include "core/ops/dispatch.h"
#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/ops/norm.h"
#include "core/ops/reduce.h"

namespace switchyard::ops {
namespace {

void check_targets(const char* op, const Tensor& rows, const Tensor& targets) {
  check(targets.defined(), op, ": targets are undefined");
  check(targets.dtype() == DType::i64, op, ": targets are ", targets.dtype(), ", expected i64");
  check(targets.shape() == Shape{rows.size(0)}, op, ": expected one target per row, ", Shape{rows.size(0)}, ", got ",
        targets.shape());
  check(targets.device() == rows.device(), op, ": devices differ: ", rows.device(), " and targets on ",
        targets.device());
}

void check_logits(const Tensor& logits, const Tensor& targets) {
  check(logits.defined(), "cross_entropy: logits are undefined");
  check(is_floating(logits.dtype()), "cross_entropy: expected a floating dtype (f32, f64, bf16), got ", logits.dtype());
  check(logits.rank() == 2, "cross_entropy: expected logits [n, V], got ", logits.shape());
  check_targets("cross_entropy", logits, targets);
}

void check_projection(const Tensor& x, const Tensor& w, const Tensor& bias) {
  constexpr const char* op = "linear_cross_entropy";
  check(x.defined() && w.defined(), op, ": an undefined tensor");
  check(is_floating(x.dtype()), op, ": expected a floating dtype (f32, f64, bf16), got ", x.dtype());
  check(x.rank() == 2 && w.rank() == 2 && x.size(1) == w.size(1), op, ": expected x [n, d] and w [V, d], got ",
        x.shape(), " and ", w.shape());
  check(w.dtype() == x.dtype() && w.device() == x.device(), op, ": x is ", x.dtype(), " on ", x.device(), ", w is ",
        w.dtype(), " on ", w.device());
  if (bias.defined()) {
    check(bias.shape() == Shape{w.size(0)} && bias.dtype() == x.dtype() && bias.device() == x.device(), op,
          ": expected bias ", Shape{w.size(0)}, " of ", x.dtype(), " on ", x.device(), ", got ", bias.shape(), " of ",
          bias.dtype(), " on ", bias.device());
  }
}

/// As many whole groups of 256 rows, a multiple of every product's tile, as have at most 2^25 logits; at least one.
std::int64_t default_chunk(std::int64_t classes) {
  constexpr std::int64_t kLogits = std::int64_t{1} << 25, kGroup = 256;
  return std::max<std::int64_t>(1, kLogits / kGroup / std::max<std::int64_t>(classes, 1)) * kGroup;
}

}  // namespace

Tensor cross_entropy_per_row(const Tensor& logits, const Tensor& targets, std::int64_t ignore_index) {
  check_logits(logits, targets);
  const Tensor losses = Tensor::empty({logits.size(0)}, compute_dtype(logits.dtype()), logits.device());
  if (losses.numel() == 0) return losses;
  SWITCHYARD_DISPATCH(logits.device(), cross_entropy, logits.contiguous(), targets.contiguous(), ignore_index, losses,
                      Tensor(), Tensor());
  return losses;
}

CrossEntropyResult cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t ignore_index,
                                 bool gradient_wanted) {
  check_logits(logits, targets);
  const DType compute = compute_dtype(logits.dtype());
  const Tensor dense_targets = targets.contiguous();
  const Tensor inverse = Tensor::empty({1}, compute, logits.device());
  SWITCHYARD_DISPATCH(logits.device(), inverse_target_count, dense_targets, ignore_index, inverse);
  const Tensor losses = Tensor::empty({logits.size(0)}, compute, logits.device());
  const Tensor dlogits = gradient_wanted ? Tensor::empty_like(logits) : Tensor();
  if (logits.size(0) > 0)
    SWITCHYARD_DISPATCH(logits.device(), cross_entropy, logits.contiguous(), dense_targets, ignore_index, losses,
                        dlogits, inverse);
  return {multiply(sum(losses), inverse.view({})), dlogits};
}

LinearCrossEntropyResult linear_cross_entropy(const Tensor& x, const Tensor& w, const Tensor& bias,
                                              const Tensor& targets, std::int64_t ignore_index, bool gradients_wanted,
                                              std::optional<std::int64_t> chunk) {
  check_projection(x, w, bias);
  check_targets("linear_cross_entropy", x, targets);
  const std::int64_t n = x.size(0), classes = w.size(0);
  const std::int64_t rows_per_chunk = chunk.value_or(default_chunk(classes)), longest = std::min(n, rows_per_chunk);
  check(rows_per_chunk >= 1, "linear_cross_entropy: rows_per_chunk is ", rows_per_chunk, ", expected at least 1");
  const DType dtype = x.dtype(), compute = compute_dtype(dtype);
  const Device device = x.device();
  const Tensor dense_targets = targets.contiguous();
  const Tensor inverse = Tensor::empty({1}, compute, device);
  SWITCHYARD_DISPATCH(device, inverse_target_count, dense_targets, ignore_index, inverse);

  // A bf16 model's logits and the sums of its gradients are f32; the factors of the products, dlogits too, are bf16.
  const Tensor losses = Tensor::empty({n}, compute, device);
  const Tensor all_logits = Tensor::empty({longest, classes}, compute, device);
  Tensor dx, dw, dbias, ones, all_dlogits = all_logits;
  if (gradients_wanted) {
    dx = Tensor::empty(x.shape(), dtype, device);
    dw = Tensor::zeros(w.shape(), compute, device);
    if (bias.defined()) dbias = Tensor::zeros({classes, 1}, compute, device);
    if (bias.defined()) ones = Tensor::ones({longest, 1}, dtype, device);
    if (dtype != compute) all_dlogits = Tensor::empty({longest, classes}, dtype, device);
  }
  for (std::int64_t begin = 0; begin < n; begin += rows_per_chunk) {
    const std::int64_t end = std::min(n, begin + rows_per_chunk);
    const Tensor rows = x.slice(0, begin, end), logits = all_logits.slice(0, 0, end - begin);
    if (bias.defined()) copy(bias, logits);
    matmul_into(rows, w.transpose(0, 1), logits, 1, bias.defined() ? 1 : 0);
    const Tensor dlogits = gradients_wanted ? all_dlogits.slice(0, 0, end - begin) : Tensor();
    SWITCHYARD_DISPATCH(device, cross_entropy, logits, dense_targets.slice(0, begin, end), ignore_index,
                        losses.slice(0, begin, end), dlogits, inverse);
    if (!gradients_wanted) continue;
    matmul_into(dlogits, w, dx.slice(0, begin, end));
    matmul_into(dlogits.transpose(0, 1), rows, dw, 1, 1);
    if (bias.defined()) matmul_into(dlogits.transpose(0, 1), ones.slice(0, 0, end - begin), dbias, 1, 1);
  }
  const Tensor loss = multiply(sum(losses), inverse.view({}));
  return {loss, dx, dw.defined() ? dw.to(dtype) : dw, dbias.defined() ? dbias.view({classes}).to(dtype) : dbias};
}

}  // namespace switchyard::ops
