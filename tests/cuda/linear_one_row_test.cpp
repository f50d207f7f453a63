// Linear maps of a single row, which have a kernel of their own: the GPU against the CPU.

#include "core/ops/matmul.h"
#include "core/ops/norm.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;

TEST(CudaMatmul, LinearOfOneRow) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (const std::int64_t rows : {1, 2})
      for (const std::int64_t width : {16, 40, 768, 3000})
        expect_parity(
            [dtype](const Tensors& in) {
              const Tensor some = in[0].slice(1, 0, in[0].size(1) - 8);  // rows that do not follow one another
              return Tensors{ops::linear(in[0], in[1], in[2]), ops::linear(in[0], in[1], {}, {}, ops::Activation::gelu),
                             ops::linear(in[0], in[1], in[2], ops::compute_dtype(dtype), ops::Activation::relu),
                             ops::linear(some, in[1].slice(1, 0, some.size(1)), in[2])};
            },
            {random_tensor({rows, width}, 1, dtype), random_tensor({37, width}, 2, dtype),
             random_tensor({37}, 3, dtype)},
            dtype, "linear of one row");
}

}  // namespace
}  // namespace switchyard
