#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "core/tensor.h"
#include "tests/support/errors.h"

namespace switchyard::testing {

/// Largest difference of two tensors of one shape, relative to the reference's largest element (at least 1e-3), as the
/// golden files define it; a reference that is zero throughout is compared absolutely. Where the reference is NaN or
/// infinite, `actual` must be the same, else the error is infinite.
inline double max_error(const Tensor& actual, const Tensor& reference) {
  if (actual.shape() != reference.shape()) {
    ADD_FAILURE() << "shapes differ: " << actual.shape() << ", expected " << reference.shape();
    return INFINITY;
  }
  const auto a = actual.to_vector<double>(), b = reference.to_vector<double>();
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    if (std::isfinite(b[i])) {
      if (!std::isfinite(a[i])) return INFINITY;
      difference = std::max(difference, std::fabs(a[i] - b[i]));
      size = std::max(size, std::fabs(b[i]));
    } else if (std::isnan(b[i]) ? !std::isnan(a[i]) : a[i] != b[i]) {
      return INFINITY;
    }
  }
  return size < 1e-9 ? difference : difference / std::max(size, 1e-3);
}

/// A tolerance for one forward operation in this dtype against a double-precision reference.
inline double tolerance(DType dtype) {
  return dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 2e-6 : dtype == DType::bf16 ? 8e-3 : 0.0;
}

inline ::testing::AssertionResult is_close(const char* a_text, const char* b_text, const char*, const Tensor& a,
                                           const Tensor& b, double allowed) {
  if (!a.defined() || !b.defined())
    return ::testing::AssertionFailure() << (a.defined() ? b_text : a_text) << " is undefined";
  const double error = max_error(a, b);
  if (error <= allowed) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "error " << error << " exceeds " << allowed << "\n  " << a_text << " = " << a
                                       << "\n  " << b_text << " = " << b;
}

}  // namespace switchyard::testing

/// Same shape, and max_error(actual, reference) at most `allowed`.
#define EXPECT_CLOSE(actual, reference, allowed) \
  EXPECT_PRED_FORMAT3(::switchyard::testing::is_close, actual, reference, allowed)
