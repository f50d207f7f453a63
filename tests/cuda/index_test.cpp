// The embedding's gradient where words fill many chunks of positions: the GPU against the CPU.

#include "core/ops/index.h"

#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;

TEST(CudaEmbedding, GradientOfRareFrequentAndMissingWords) {
  SKIP_WITHOUT_GPU();
  std::vector<std::int64_t> ids;
  for (int i = 0; i < 1000; ++i) ids.push_back(i % 3 == 0 ? 7 : i % 5 == 0 ? 2 : 10 + i % 61);
  const Tensor many = Tensor::from(ids, {10, 100}), few = many.slice(0, 0, 1);
  for (const DType dtype : kFloatingDTypes)
    for (const std::int64_t width : {3, 4, 40, 1032}) {
      const auto op = [](const Tensors& in) {
        return Tensors{ops::embedding_backward(in[0], in[2], 80), ops::embedding_backward(in[1], in[3], 80),
                       ops::embedding(in[4], in[2])};
      };
      expect_parity(op,
                    {random_tensor({10, 100, width}, 1, dtype, 0, 0.01), random_tensor({1, 100, width}, 2, dtype), many,
                     few, random_tensor({80, width}, 3, dtype)},
                    dtype, "embedding");
    }
}

}  // namespace
}  // namespace switchyard
