#pragma once

#include "autograd/variable.h"

namespace switchyard {

/// Rows of table [v, d] named by ids (i64, any shape): [..., d].
Variable embedding(const Variable& table, const Tensor& ids);
/// Elements of the last axis: x [..., d], index i32 [..., k] -> [..., k].
Variable gather_last(const Variable& x, const Tensor& index);

}  // namespace switchyard
