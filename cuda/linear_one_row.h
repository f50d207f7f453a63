#pragma once

#include "core/ops/elementwise.h"

namespace switchyard::cuda {

/// Whether linear_one_row() takes these operands of `linear`: one row, in memory that vectors of 16 bytes can be read
/// from.
bool has_one_row(const Tensor& x, const Tensor& w);
/// The entry point `linear` for such operands.
void linear_one_row(const Tensor& x, const Tensor& w, const Tensor& bias, ops::Activation activation,
                    const Tensor& out);

}  // namespace switchyard::cuda
