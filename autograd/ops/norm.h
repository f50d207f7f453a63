#pragma once

#include "autograd/variable.h"

namespace switchyard {

/// (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis; weight, bias [d] or undefined.
Variable layer_norm(const Variable& x, const Variable& weight, const Variable& bias, double epsilon);
/// x / sqrt(mean(x^2) + epsilon) * weight over the last axis; weight [d] or undefined.
Variable rms_norm(const Variable& x, const Variable& weight, double epsilon);

struct AddedNorm {
  Variable sum;     ///< x + addend; x itself without an addend
  Variable normed;  ///< the norm of sum
};
/// The step of a residual stream in one pass over memory, forward and backward: x + addend, and its norm. addend has
/// x's shape, or is undefined. Go on with `sum`, not with x: so their gradients meet in the norm's own backward pass.
AddedNorm add_layer_norm(const Variable& x, const Variable& addend, const Variable& weight, const Variable& bias,
                         double epsilon);
AddedNorm add_rms_norm(const Variable& x, const Variable& addend, const Variable& weight, double epsilon);

/// Softmax over the last axis.
Variable softmax(const Variable& x);
Variable log_softmax(const Variable& x);
/// log(sum(exp(x))) over the last axis, which disappears.
Variable logsumexp(const Variable& x);

}  // namespace switchyard
