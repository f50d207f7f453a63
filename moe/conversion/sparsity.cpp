#include "moe/conversion/sparsity.h"

#include <algorithm>
#include <cmath>

#include "autograd/node.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "core/ops/norm.h"
#include "core/ops/reduce.h"

namespace switchyard::moe {
namespace {

using ops::Binary;
using ops::Unary;

constexpr double kEpsilon = 1e-15;  // of the original: keeps 0 / 0 away, changes nothing else

void check_rows(const char* op, const Shape& shape) {
  check(shape.rank() >= 1 && shape.numel() > 0, op, ": x must be [..., neurons] and not empty, got ", shape);
}

/// With S = sum |x|, Q = sum x^2 + epsilon and ratio = S / Q [..., 1]: dx = dy 2 ratio (sign(x) - ratio x). No division
/// by S or Q squared: it is finite, and 0, where all x are 0.
Tensor square_hoyer_backward(const Tensor& dy, const Tensor& x, const Tensor& ratio) {
  const Tensor values = x.to(ratio.dtype());
  const Tensor sign = ops::unary_backward(Unary::abs, Tensor::ones(x.shape(), ratio.dtype(), x.device()), values);
  const Tensor slope = ops::subtract(sign, ops::multiply(ratio, values));
  return ops::multiply(ops::multiply(ops::affine(dy.unsqueeze(-1), 2), ratio), slope).to(x.dtype());
}

void check_weight(double weight) {
  check(std::isfinite(weight) && weight >= 0, "sparsity_weight: weight is ", weight, ", expected 0 or more");
}

}  // namespace

Variable square_hoyer(const Variable& x) {
  check_rows("square_hoyer", x.shape());
  const Tensor values = x.data().to(ops::compute_dtype(x.dtype()));
  const Tensor total = ops::sum(ops::unary(Unary::abs, values), {-1}, true);
  const Tensor squares = ops::affine(ops::sum(ops::unary(Unary::square, values), {-1}, true), 1, kEpsilon);
  const Tensor ratio = ops::divide(total, squares);
  return record(
      "square_hoyer", ops::multiply(total, ratio).squeeze(-1), {x},
      [x_saved = x.data(), ratio](const Tensor& dy) { return Gradients{square_hoyer_backward(dy, x_saved, ratio)}; });
}

Variable l1_norm(const Variable& x) {
  check_rows("l1_norm", x.shape());
  return sum(unary(Unary::abs, cast(x, ops::compute_dtype(x.dtype()))), {-1});
}

Variable displaced(const Variable& z, double displacement) {
  check(std::isfinite(displacement), "displaced: displacement is ", displacement, ", expected a finite number");
  return relu(z + -displacement);
}

Variable sparsity_penalty(SparsityMeasure measure, const Variable& x) {
  return mean(measure == SparsityMeasure::square_hoyer ? square_hoyer(x) : l1_norm(x));
}

nn::Schedule sparsity_weight::constant(double weight) {
  check_weight(weight);
  return [weight](std::int64_t) { return weight; };
}

nn::Schedule sparsity_weight::linear(double weight, std::int64_t updates) {
  check_weight(weight);
  check(updates >= 1, "sparsity_weight: ", updates, " updates, expected at least 1");
  return [weight, updates](std::int64_t update) {
    return weight * std::min(1.0, static_cast<double>(update) / static_cast<double>(updates));
  };
}

void ActivationSparsity::add(const Tensor& x) {
  check(x.defined() && is_floating(x.dtype()), "ActivationSparsity: x must be floating");
  check_rows("ActivationSparsity", x.shape());
  if (!counts_.defined() || counts_.device() != x.device()) counts_ = Tensor::zeros({4}, DType::f64, x.device());
  const Tensor size = ops::unary(Unary::abs, x.to(ops::compute_dtype(x.dtype())));
  const Tensor largest = ops::reduce(ops::Reduction::max, size, {-1}, true);
  const auto add_at_most = [&](std::int64_t index, double share) {
    const Tensor low = ops::binary(Binary::less_equal, size, ops::affine(largest, share));
    ops::accumulate(counts_.select(0, index), ops::sum(low));
  };
  ops::accumulate(counts_.select(0, 0), Tensor::scalar(static_cast<double>(x.numel()), DType::f64, x.device()));
  add_at_most(1, 0);
  add_at_most(2, 0.1);
  add_at_most(3, 0.01);
}

void ActivationSparsity::reset() {
  if (counts_.defined()) counts_.fill(0);
}

SparsitySummary ActivationSparsity::summary() const {
  const std::vector<double> counts = counts_.defined() ? counts_.to_vector<double>() : std::vector<double>(4);
  const double values = counts[0];
  check(values > 0, "ActivationSparsity: no activations were added");
  return {values, counts[1] / values, counts[2] / values, counts[3] / values};
}

}  // namespace switchyard::moe
