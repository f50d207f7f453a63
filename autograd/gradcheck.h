#pragma once

#include <functional>
#include <string>

#include "autograd/variable.h"

namespace switchyard {

/// What gradcheck found.
struct GradcheckResult {
  bool ok = true;
  double worst = 0;     ///< largest error found
  std::string message;  ///< where the worst error is, with both values
  explicit operator bool() const { return ok; }
};

/// Compares the backward pass of `f` with central differences, element by element, for the objective
/// sum(f(inputs) * w) with fixed random w. Inputs that require a gradient must be f64 leaves. The error of an element
/// is |analytic - numeric| / max(1, |numeric|).
GradcheckResult gradcheck(const std::function<Variable(const Variables&)>& f, const Variables& inputs,
                          double tolerance = 1e-6, double step = 1e-5);

}  // namespace switchyard
