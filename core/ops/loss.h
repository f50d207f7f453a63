#pragma once

#include <optional>

#include "core/tensor.h"

namespace switchyard::ops {

/// Negative log-likelihood of each target: logits [n, V], targets i64 [n] -> [n] in the compute dtype; 0 where the
/// target is ignore_index. Any other target outside 0..V-1 throws on the CPU and gives NaN on a GPU.
Tensor cross_entropy_per_row(const Tensor& logits, const Tensor& targets, std::int64_t ignore_index);

struct CrossEntropyResult {
  Tensor loss;     ///< rank 0, compute dtype: mean over the rows whose target is not ignore_index; 0 without any
  Tensor dlogits;  ///< gradient of loss, logits' dtype; undefined unless wanted
};
/// Mean cross-entropy of logits [n, V] with targets i64 [n].
CrossEntropyResult cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t ignore_index,
                                 bool gradient_wanted);

struct LinearCrossEntropyResult {
  Tensor loss;           ///< rank 0, compute dtype: mean over the rows whose target is not ignore_index
  Tensor dx, dw, dbias;  ///< gradients of loss; undefined unless wanted (dbias also where bias is undefined)
};
/// Mean cross-entropy of the logits x w^T + bias, taken `rows_per_chunk` rows at a time (by default as many as have
/// 2^25 logits, 128 MiB in f32), so that the logits of the whole batch never exist at once. x [n, d], w [V, d], bias
/// [V] or undefined, targets i64 [n]. With gradients_wanted the gradients are computed on the way, chunk by chunk,
/// which costs no second product for logits.
LinearCrossEntropyResult linear_cross_entropy(const Tensor& x, const Tensor& w, const Tensor& bias,
                                              const Tensor& targets, std::int64_t ignore_index, bool gradients_wanted,
                                              std::optional<std::int64_t> rows_per_chunk = {});

}  // namespace switchyard::ops
