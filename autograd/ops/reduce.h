#pragma once

#include "autograd/variable.h"

namespace switchyard {

/// Sum over the given axes (negative count from the end; none means all).
Variable sum(const Variable& x, const Shape& axes = {}, bool keep_axes = false);
/// Mean over the given axes.
Variable mean(const Variable& x, const Shape& axes = {}, bool keep_axes = false);

}  // namespace switchyard
