#pragma once

#include <functional>
#include <vector>

#include "core/kernels/device.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::testing {

/// Skips a test on a machine without a GPU, or in a build without CUDA.
#define SKIP_WITHOUT_GPU() \
  if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU, or a build without CUDA"

using Tensors = std::vector<Tensor>;

inline Tensors to_device(const Tensors& tensors, Device device) {
  Tensors moved;
  for (const Tensor& t : tensors) moved.push_back(t.defined() ? t.to(device) : t);
  return moved;
}

/// How far a GPU's results may lie from the CPU's.
inline double parity_tolerance(DType dtype) {
  return dtype == DType::f64 ? 1e-11 : dtype == DType::f32 ? 1e-5 : dtype == DType::bf16 ? 2e-2 : 0.0;
}

/// Runs `op` on the CPU and on the GPU with the same inputs and compares every result. Results on the GPU are compared
/// with a second run as well, bit for bit.
inline void expect_parity(const std::function<Tensors(const Tensors&)>& op, const Tensors& inputs, DType dtype,
                          const char* what) {
  SCOPED_TRACE(what);
  const Tensors expected = op(inputs);
  const Tensors on_gpu = to_device(inputs, Device::cuda());
  const Tensors actual = op(on_gpu), again = op(on_gpu);
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    SCOPED_TRACE("result " + std::to_string(i) + ", " + std::string(name_of(dtype)));
    ASSERT_EQ(actual[i].defined(), expected[i].defined());
    if (!expected[i].defined()) continue;
    EXPECT_EQ(actual[i].dtype(), expected[i].dtype());
    const double error = max_error(actual[i].to(Device::cpu()), expected[i]);
    EXPECT_LE(error, is_floating(expected[i].dtype()) ? parity_tolerance(dtype) : 0.0);
    EXPECT_EQ(actual[i].to_vector<double>(), again[i].to_vector<double>()) << "two runs differ";
  }
}

}  // namespace switchyard::testing
