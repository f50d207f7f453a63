#pragma once

#include "autograd/variable.h"

namespace switchyard {

/// Mean cross-entropy of logits [n, V] with targets i64 [n] over the rows whose target is not ignore_index.
Variable cross_entropy(const Variable& logits, const Tensor& targets, std::int64_t ignore_index = -100);
/// The same for logits x w^T + bias, without ever holding the logits of the whole batch; see
/// ops::linear_cross_entropy. x [n, d], w [V, d], bias [V] or undefined.
Variable linear_cross_entropy(const Variable& x, const Variable& w, const Variable& bias, const Tensor& targets,
                              std::int64_t ignore_index = -100);

}  // namespace switchyard
