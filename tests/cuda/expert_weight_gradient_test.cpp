// Gradients of expert weights on the tensor cores: tiles that are not full, rows of every alignment, one expert with
// half of the pairs and others with none.

#include <gtest/gtest.h>

#include "core/ops/expert_matmul.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;
using ops::Rows;

struct Case {
  std::int64_t tokens, slots, experts, inner, outer;  // experts of each slot
  Rows input, output;
};

/// Two choices for every row: the first expert, and one of the others but the last.
Tensor uneven_choices(const Case& c) {
  Tensor indices = random_tensor({c.tokens, c.slots, 2}, 3, DType::i32, 1, static_cast<double>(c.experts) - 2);
  indices.slice(2, 0, 1).fill(0);
  return indices;
}

TEST(CudaExpertWeightGradient, UnevenExpertsAndTilesThatAreNotFull) {
  SKIP_WITHOUT_GPU();
  for (const Case& c : {Case{3000, 1, 8, 256, 128, Rows::token, Rows::pair},   // tiles along both axes
                        Case{3000, 1, 8, 128, 512, Rows::pair, Rows::token},   //
                        Case{700, 4, 4, 200, 112, Rows::token, Rows::row},     // several slots
                        Case{2000, 1, 6, 76, 300, Rows::token, Rows::pair},    // rows aligned to 8 bytes
                        Case{500, 1, 5, 67, 131, Rows::token, Rows::pair},     // not aligned
                        Case{30, 1, 200, 136, 264, Rows::pair, Rows::token},   // more experts than pairs
                        Case{300, 1, 3, 1500, 3000, Rows::token, Rows::pair},  // more tiles than blocks
                        Case{1, 1, 4, 512, 520, Rows::token, Rows::pair}}) {
    const auto rows = [&](Rows kind) {
      return c.tokens * (kind == Rows::token ? 1 : kind == Rows::row ? c.slots : c.slots * 2);
    };
    const Tensors inputs = {random_tensor({rows(c.output), c.outer}, 1, DType::bf16),
                            random_tensor({rows(c.input), c.inner}, 2, DType::bf16), uneven_choices(c),
                            random_tensor({c.tokens, c.slots, 2}, 4, DType::bf16)};
    for (const bool gated : {false, true}) {
      const auto gradient = [&](const Tensors& in) -> Tensors {
        const auto plan = ops::routing_plan(in[2], c.experts);
        return {
            ops::expert_matmul_weight_backward(in[0], in[1], gated ? in[3] : Tensor{}, plan, {c.input, c.output}, false)
                .dweight};
      };
      expect_parity(
          gradient, inputs, DType::bf16,
          ("[" + std::to_string(c.inner) + ", " + std::to_string(c.outer) + "]" + (gated ? " gated" : "")).c_str());
    }
  }
}

}  // namespace
}  // namespace switchyard
