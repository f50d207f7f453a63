#pragma once

#include <vector>

#include "core/tensor.h"

namespace switchyard::ops {

/// Rows of table [v, d] named by ids (i64, any shape): [..., d]. On the CPU an id outside 0..v-1 throws; on a GPU
/// the row is filled with NaN, because checking would need a host read.
Tensor embedding(const Tensor& table, const Tensor& ids);
/// Gradient of the table: for each id the sum of the matching rows of dy, in a fixed order.
Tensor embedding_backward(const Tensor& dy, const Tensor& ids, std::int64_t rows);
/// Elements of the last axis: x [..., d], index i32 [..., k] -> [..., k].
Tensor gather_last(const Tensor& x, const Tensor& index);
/// Gradient of gather_last for x with a last axis of `size`.
Tensor gather_last_backward(const Tensor& dy, const Tensor& index, std::int64_t size);
/// Joins tensors along one axis; all other sizes, dtype and device are equal.
Tensor concat(const std::vector<Tensor>& parts, std::int64_t axis);

}  // namespace switchyard::ops
