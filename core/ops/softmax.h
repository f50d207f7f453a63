#pragma once

#include "core/tensor.h"

namespace switchyard::ops {

// All over the last axis, stable for large inputs; a row that is -inf throughout gives zeros (softmax).

Tensor softmax(const Tensor& x);
/// dx = y (dy - sum(dy y)).
Tensor softmax_backward(const Tensor& dy, const Tensor& y);
Tensor log_softmax(const Tensor& x);
/// dx = dy - exp(y) sum(dy), with y the log-probabilities.
Tensor log_softmax_backward(const Tensor& dy, const Tensor& y);
/// log(sum(exp(x))); the last axis disappears. Its gradient is dy softmax(x).
Tensor logsumexp(const Tensor& x);

}  // namespace switchyard::ops
