// The watch over kernels: what ran, for which op of which part of the model.

#include "core/kernel_trace.h"

#include <boost/json.hpp>
#include <sstream>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "core/name_scope.h"
#include "tests/cuda/call_watch.h"
#include "tests/cuda/parity.h"
#include "tests/support/temporary_folder.h"

namespace switchyard {
namespace {

using namespace testing;

constexpr int kSteps = 3;

/// A product and a sigmoid, forward and backward.
void step(const Variable& x, const Variable& w) {
  Variable y;
  {
    const NameScope scope("layers.7");
    y = sigmoid(linear(x, w));
  }
  y.backward(Tensor::ones(y.shape(), y.dtype(), y.device()));
}

TEST(CudaKernelTrace, NamesKernelsOpsAndModules) {
  SKIP_WITHOUT_GPU();
  if (!CallWatch::kAvailable) GTEST_SKIP() << "a build without CUPTI";
  const Variable x(random_tensor({4096, 1024}, 1, DType::bf16).to(Device::cuda()), true);
  const Variable w(random_tensor({2048, 1024}, 2, DType::bf16).to(Device::cuda()), true);
  step(x, w);
  KernelTrace trace(Device::cuda());
  enable_profiler(true);
  for (int i = 0; i < kSteps; ++i) step(x, w);
  enable_profiler(false);
  step(x, w);
  trace.stop();
  reset_profile();

  std::ostringstream table;
  trace.print(table, kSteps);
  SCOPED_TRACE(table.str());
  for (const char* name : {"\nlinear ", "\nmatmul ", "\nunary ", "\nunary_backward ", "outside of ops", "nothing runs"})
    EXPECT_NE(table.str().find(name), std::string::npos) << name;

  const TemporaryFolder folder;
  trace.write_chrome_trace(folder / "trace.json");
  const auto events = boost::json::parse(read_bytes(folder / "trace.json")).at("traceEvents").as_array();
  int products_on_gpu = 0, products_on_host = 0, kernels_in_module = 0;
  for (const auto& event : events) {
    if (event.at("ph") != "X") continue;
    EXPECT_GE(event.at("dur").to_number<double>(), 0);
    const auto* arguments = event.as_object().if_contains("args");
    const auto* op = arguments ? arguments->as_object().if_contains("op") : nullptr;
    if (event.at("tid") == 0) products_on_host += event.at("name") == "gemm";
    if (op && (*op == "linear" || *op == "matmul")) ++products_on_gpu;
    if (op && arguments->at("module") == "layers.7") ++kernels_in_module;
  }
  EXPECT_EQ(products_on_host, 3 * kSteps);
  EXPECT_GE(products_on_gpu, 3 * kSteps);
  EXPECT_GT(kernels_in_module, products_on_gpu) << "forward and backward, products and the rest";
}

}  // namespace
}  // namespace switchyard
