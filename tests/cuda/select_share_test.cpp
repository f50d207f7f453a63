// Experts chosen by their row's scores: the share of all scores, where the GPU adds up what the CPU sorts; and those
// near the largest.

#include <limits>

#include "core/ops/routing.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;

TEST(CudaSelectShare, OfShortAndLongRows) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (const std::int64_t experts : {1, 6, 33, 768})
      for (const double share : {0.0, 0.3, 0.71}) {
        const auto op = [share](const Tensors& in) { return Tensors{ops::select_share(in[0], share)}; };
        expect_parity(op, {random_tensor({50, experts}, 1, dtype, 0, 1)}, dtype, "select_share");
        expect_parity(op, {Tensor::zeros({3, experts}, dtype)}, dtype, "select_share of zeros");
      }
}

TEST(CudaSelectNearMaximum, OfShortAndLongRows) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (const std::int64_t experts : {1, 6, 33, 768})
      for (const double tau : {0.0, 0.3, 1.0}) {
        const auto op = [tau](const Tensors& in) { return Tensors{ops::select_near_maximum(in[0], tau)}; };
        expect_parity(op, {random_tensor({50, experts}, 1, dtype, 0, 1)}, dtype, "select_near_maximum");
        const Tensor negative = random_tensor({50, experts}, 1, dtype, -1, -0.1);
        expect_parity(op, {negative}, dtype, "select_near_maximum of negative scores");
        negative.select(0, 7).select(0, experts - 1).fill(std::numeric_limits<double>::quiet_NaN());
        expect_parity(op, {negative}, dtype, "select_near_maximum with a NaN");
        expect_parity(op, {Tensor::zeros({3, experts}, dtype)}, dtype, "select_near_maximum of zeros");
      }
}

}  // namespace
}  // namespace switchyard
