#pragma once

#include <gtest/gtest.h>

#include <sstream>
#include <string>

#include "core/device.h"

namespace switchyard::testing {

/// As error messages name it.
inline std::string text_of(Device device) { return (std::ostringstream() << device).str(); }

}  // namespace switchyard::testing

/// Skips a test that does not hold on a GPU, where the tests run on one (SWITCHYARD_TEST_DEVICE, see main.cpp).
#define SKIP_ON_GPU(why) \
  if (::switchyard::default_device().is_cuda()) GTEST_SKIP() << why
