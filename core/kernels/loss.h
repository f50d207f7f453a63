#pragma once

#include "core/kernels/entry_points.h"

/// losses[i] as in ops::cross_entropy_per_row. Where dlogits is defined (it may be logits itself, or bf16 beside
/// logits in f32) it receives (softmax - onehot) * scale[0], rows of ignored targets 0. logits [n, V] dense, targets
/// i64 [n], losses [n] and scale [1] in the compute dtype.
SWITCHYARD_ENTRY(cross_entropy, const Tensor& logits, const Tensor& targets, std::int64_t ignore_index,
                 const Tensor& losses, const Tensor& dlogits, const Tensor& scale)
/// inverse [1], compute dtype: 1 / (number of targets other than ignore_index), or 0 if there are none.
SWITCHYARD_ENTRY(inverse_target_count, const Tensor& targets, std::int64_t ignore_index, const Tensor& inverse)
