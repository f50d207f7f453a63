#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "core/ops/index.h"
#include "tests/nn/attention_layers.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::nn {
namespace {

using switchyard::testing::random_tensor;
using switchyard::testing::tensor_of;

TEST(MultiHeadAttention, decoding_gives_the_rows_of_the_full_pass) {
  for (const auto& [name, position] : kPositions) {
    SCOPED_TRACE(name);
    for (const DType dtype : {DType::f64, DType::f32}) {
      const auto layer = make(options_with(position), dtype);
      NoGradGuard no_grad;
      const Tensor x = random_tensor({2, 9, kWidth}, 1, dtype);
      const Tensor full = layer->forward(Variable(x)).output.data();
      for (const std::vector<std::int64_t>& chunks :
           std::vector<std::vector<std::int64_t>>{{9}, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {4, 1, 1, 3}, {1, 8}}) {
        KeyValueCache cache;
        std::vector<Tensor> parts;
        std::int64_t at = 0;
        for (const std::int64_t chunk : chunks) {
          AttentionArguments arguments;
          arguments.cache = &cache;
          parts.push_back(layer->forward(Variable(x.slice(1, at, at + chunk)), arguments).output.data());
          at += chunk;
        }
        EXPECT_EQ(cache.length, 9);
        EXPECT_CLOSE(ops::concat(parts, 1), full, dtype == DType::f64 ? 1e-13 : 1e-5);
      }
    }
  }
}

/// The output [B, T, D] and the attention [B, H, T, T] of a causal layer fed `chunk` tokens at a time.
struct Decoded {
  Tensor output, probabilities;
};
Decoded decode(MultiHeadAttention& layer, const Tensor& x, std::int64_t chunk, const Tensor& padding) {
  KeyValueCache cache;
  std::vector<Tensor> outputs;
  Decoded decoded;
  const std::int64_t length = x.size(1);
  for (std::int64_t at = 0; at < length; at += chunk) {
    const std::int64_t end = std::min(at + chunk, length);
    AttentionInspection inspection;
    AttentionArguments arguments;
    arguments.cache = &cache;
    arguments.key_padding = padding.slice(1, 0, end);
    arguments.inspection = &inspection;
    outputs.push_back(layer.forward(Variable(x.slice(1, at, end)), arguments).output.data());
    const Tensor& rows = inspection.probabilities;
    if (!decoded.probabilities.defined())
      decoded.probabilities = Tensor::zeros({x.size(0), rows.size(1), length, length}, rows.dtype(), rows.device());
    decoded.probabilities.slice(2, at, end).slice(3, 0, end).copy_from(rows);
  }
  decoded.output = ops::concat(outputs, 1);
  return decoded;
}

TEST(MultiHeadAttention, decoding_follows_the_full_pass_while_tables_and_caches_grow) {
  constexpr std::int64_t kLength = 140;
  const Tensor padding = tensor_of({2, kLength}, [](const Shape& i) { return i[0] == 1 && i[1] < 3 ? 1.0 : 0.0; })
                             .to(DType::boolean)
                             .to(default_device());
  for (const auto& [name, position] : kPositions) {
    for (const std::int64_t key_value_heads : {4, 2, 1}) {
      SCOPED_TRACE(std::string(name) + ", " + std::to_string(key_value_heads) + " heads of keys");
      MultiHeadAttentionOptions options = grouped_options(position);
      options.key_value_heads = key_value_heads;
      for (const DType dtype : {DType::f64, DType::f32}) {
        const auto layer = make(options, dtype);
        NoGradGuard no_grad;
        const Tensor x = random_tensor({2, kLength, kWidth}, 1, dtype);
        AttentionInspection inspection;
        AttentionArguments whole;
        whole.key_padding = padding;
        whole.inspection = &inspection;
        const Tensor full = layer->forward(Variable(x), whole).output.data();
        for (const std::int64_t chunk : {1, 67}) {
          const Decoded decoded = decode(*layer, x, chunk, padding);
          EXPECT_CLOSE(decoded.output, full, dtype == DType::f64 ? 1e-13 : 1e-5);
          EXPECT_CLOSE(decoded.probabilities, inspection.probabilities, dtype == DType::f64 ? 1e-13 : 1e-5);
        }
      }
    }
  }
}

}  // namespace
}  // namespace switchyard::nn
