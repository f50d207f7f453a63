// Rotary positions: the GPU against the CPU.

#include "core/ops/attention.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;

TEST(CudaRope, AllAccessWidthsAndLayoutsAlsoInPlace) {
  SKIP_WITHOUT_GPU();
  // Head width, rotated channels: 16, 8 and 2 bytes at a time in bf16, everything or nothing turned.
  for (const auto& [width, rotated] : {std::pair{64, 32}, {112, 56}, {76, 38}, {11, 6}, {32, 32}, {8, 0}})
    for (const DType dtype : kFloatingDTypes) {
      const auto op = [rotated = rotated, dtype](const Tensors& in) {
        const auto tables =
            ops::rope_tables(40, rotated, 10000, dtype == DType::f64 ? DType::f64 : DType::f32, in[0].device());
        const Tensor part = in[0].slice(2, 1, 3);  // two of the heads, as in a product of several projections
        const Tensor changed = in[0].clone();
        ops::rope_in_place(changed.slice(2, 1, 3), tables, 9, true);
        return Tensors{ops::rope(in[0], tables, 4), ops::rope(part, tables, 2, true), changed};
      };
      expect_parity(op, {random_tensor({3, 29, 4, width}, 1, dtype)}, dtype, "rope");
    }
}

}  // namespace
}  // namespace switchyard
