#include "moe/conversion/split.h"

#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::element;
using testing::random_tensor;

DenseWeights dense_weights(DType dtype) {
  return {random_tensor({6, 4}, 1, dtype), random_tensor({6}, 2, dtype),    random_tensor({6, 4}, 3, dtype),
          random_tensor({6}, 4, dtype),    random_tensor({5, 6}, 5, dtype), random_tensor({5}, 6, dtype)};
}

TEST(SplitIntoExperts, each_neuron_lands_where_its_label_says) {
  const std::vector<std::vector<std::int64_t>> neurons = {{2, 5}, {0, 1}, {3, 4}};  // of each expert, ascending
  const Tensor labels = Tensor::from<std::int64_t>({1, 1, 0, 2, 2, 0}, {6});
  for (const DType dtype : testing::kFloatingDTypes) {
    const DenseWeights dense = dense_weights(dtype);
    const ExpertWeights experts = split_into_experts(dense, labels, 3);
    EXPECT_EQ(experts.experts(), 3);
    EXPECT_EQ(experts.width(), 4);
    EXPECT_EQ(experts.expert_width(), 2);
    EXPECT_EQ(experts.output_width(), 5);
    EXPECT_TRUE(experts.gated());
    for (std::int64_t e = 0; e < 3; ++e)
      for (std::int64_t s = 0; s < 2; ++s) {
        const std::int64_t n = neurons[static_cast<std::size_t>(e)][static_cast<std::size_t>(s)];
        EXPECT_EQ(element(experts.up_bias, {e, s}), element(dense.up_bias, {n}));
        EXPECT_EQ(element(experts.gate_bias, {e, s}), element(dense.gate_bias, {n}));
        for (std::int64_t d = 0; d < 4; ++d) {
          EXPECT_EQ(element(experts.up, {e, d, s}), element(dense.up, {n, d}));
          EXPECT_EQ(element(experts.gate, {e, d, s}), element(dense.gate, {n, d}));
        }
        for (std::int64_t d = 0; d < 5; ++d) EXPECT_EQ(element(experts.down, {e, s, d}), element(dense.down, {d, n}));
      }
    EXPECT_CLOSE(experts.last_bias, dense.down_bias, 0);
    EXPECT_EQ(experts.down.dtype(), dtype);
  }
}

TEST(SplitIntoExperts, later_changes_of_the_dense_layer_do_not_show) {
  const DenseWeights dense = dense_weights(DType::f32);
  const ExpertWeights experts = split_into_experts(dense, Tensor::zeros({6}, DType::i64), 1);
  const Tensor before = experts.last_bias.clone();
  dense.down_bias.fill(7);
  EXPECT_CLOSE(experts.last_bias, before, 0);
}

TEST(SplitIntoExperts, bad_input_is_named) {
  const auto labels = [](std::initializer_list<std::int64_t> values) {
    return Tensor::from<std::int64_t>(values, {6});
  };
  const Tensor good = labels({0, 1, 0, 1, 0, 1});
  DenseWeights dense = dense_weights(DType::f32);
  EXPECT_ERROR(split_into_experts(dense, good, 4), "split_into_experts: 6 neurons do not divide into 4 experts");
  EXPECT_ERROR(split_into_experts(dense, good, 0), "6 neurons do not divide into 0 experts");
  EXPECT_ERROR(split_into_experts(dense, labels({0, 0, 0, 0, 1, 1}), 2), "expert 0 has 4 neurons, expected 3");
  EXPECT_ERROR(split_into_experts(dense, labels({0, 1, 0, 1, 0, 2}), 2), "neuron 5 has label 2, expected 0..1");
  EXPECT_ERROR(split_into_experts(dense, good.slice(0, 0, 4), 2), "labels must be i64 [6]");
  dense.up_bias = random_tensor({5}, 1);
  EXPECT_ERROR(split_into_experts(dense, good, 2), "the bias of up must be [6], got [5]");
  dense.up_bias = {};
  dense.gate = random_tensor({6, 3}, 1);
  EXPECT_ERROR(split_into_experts(dense, good, 2), "gate must be [6, 4], got [6, 3]");
  dense.gate = {};
  EXPECT_ERROR(split_into_experts(dense, good, 2), "a gate bias without a gate");
  dense.down = {};
  EXPECT_ERROR(split_into_experts(dense, good, 2), "a feed-forward needs the matrices up [F, D] and down");
}

}  // namespace
}  // namespace switchyard::moe
