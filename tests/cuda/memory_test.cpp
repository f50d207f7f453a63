// Memory of a GPU. How it is split, merged and kept for graphs is tested on the CPU: tests/core/arena_test.cpp.

#include "core/name_scope.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;

TEST(CudaMemory, RunningOutNamesTheHoldersAndLeavesTheDeviceUsable) {
  SKIP_WITHOUT_GPU();
  const Tensor outside = Tensor::ones({8}, DType::f32, Device::cuda());
  Tensor held;
  {
    const NameScope scope("layers.3.attention");
    held = Tensor::full({1 << 20}, 2, DType::f32, Device::cuda());
  }
  const std::string message = error_of([] { Tensor::empty({1ll << 42}, DType::f32, Device::cuda()); });
  for (const char* part : {"allocate: out of memory on cuda:0: 16777216.0 MiB wanted, ", "\n  layers.*.attention ",
                           "\n  outside of them: weights, optimizer", "training.recompute"})
    EXPECT_NE(message.find(part), std::string::npos) << part << " is not in\n" << message;
  EXPECT_EQ(held.to_vector<double>(), std::vector<double>(1 << 20, 2));
}

}  // namespace
}  // namespace switchyard
