// The main program of every test program. SWITCHYARD_TEST_DEVICE=cuda runs the tests on the GPU: what they make
// without naming a device, they make there. Where there is no GPU, all of them are skipped, and counted.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "core/kernels/device.h"

namespace switchyard::testing {
namespace {

class SkipAll : public ::testing::Environment {
 public:
  void SetUp() override {
    // Not as the reason to skip, which GoogleTest prints twice: scripts/run-tests.sh adds these lines up.
    std::printf("%d tests skipped: no GPU, or a build without CUDA\n",
                ::testing::UnitTest::GetInstance()->test_to_run_count());
    GTEST_SKIP();
  }
};

int run(int argc, char** argv) {
  const char* wanted = std::getenv("SWITCHYARD_TEST_DEVICE");
  const Device device = wanted ? Device::parse(wanted) : Device::cpu();
  const bool missing = device.is_cuda() && cuda::device_count() <= device.index;
  if (!missing) set_default_device(device);  // before GoogleTest makes the parameters of tests
  ::testing::InitGoogleTest(&argc, argv);
  if (missing) ::testing::AddGlobalTestEnvironment(new SkipAll);  // GoogleTest deletes it
  const int status = RUN_ALL_TESTS();
  const ::testing::UnitTest& tests = *::testing::UnitTest::GetInstance();
  if (tests.skipped_test_count() > 0)
    std::printf("%d of %d tests skipped\n", tests.skipped_test_count(), tests.test_to_run_count());
  return status;
}

}  // namespace
}  // namespace switchyard::testing

int main(int argc, char** argv) { return switchyard::testing::run(argc, argv); }
