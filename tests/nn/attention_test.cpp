#include "nn/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/shape.h"
#include "core/ops/index.h"
#include "tests/nn/attention_layers.h"
#include "tests/nn/layer_gradcheck.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::nn {
namespace {

using switchyard::testing::element;
using switchyard::testing::random_tensor;
using switchyard::testing::tensor_of;

std::map<std::string, Tensor> parameters_of(const Module& module) {
  std::map<std::string, Tensor> result;
  for (const NamedParameter& p : module.named_parameters()) result[p.name] = p.variable.data();
  return result;
}

using Matrix = std::vector<std::vector<double>>;

/// Rows of a source token by token, projected, for one batch and head.
Matrix project(const Tensor& source, std::int64_t b, std::int64_t h, const Tensor& w) {
  Matrix rows(static_cast<std::size_t>(source.size(1)), std::vector<double>(kHeadWidth));
  for (std::int64_t t = 0; t < source.size(1); ++t)
    for (std::int64_t c = 0; c < kHeadWidth; ++c)
      for (std::int64_t k = 0; k < kWidth; ++k)
        rows[t][c] += element(source, {b, t, k}) * element(w, {h * kHeadWidth + c, k});
  return rows;
}

void rotate(std::vector<double>& row, std::int64_t position, const PositionOptions& options) {
  const auto r = static_cast<std::int64_t>(options.fraction * kHeadWidth);
  const std::vector<double> x = row;
  for (std::int64_t i = 0; i < r / 2; ++i) {
    const double angle =
        static_cast<double>(position) * std::pow(options.base, -2.0 * static_cast<double>(i) / static_cast<double>(r));
    row[i] = x[i] * std::cos(angle) - x[i + r / 2] * std::sin(angle);
    row[i + r / 2] = x[i + r / 2] * std::cos(angle) + x[i] * std::sin(angle);
  }
}

double sinusoid(std::int64_t n, std::int64_t channel) {
  const double angle =
      static_cast<double>(n) * std::pow(10000.0, -2.0 * static_cast<double>(channel / 2) / static_cast<double>(kWidth));
  return channel % 2 == 0 ? std::sin(angle) : std::cos(angle);
}

/// The layer from its definition, one multiplication at a time, scaling q, k and sinusoids by d^(-1/4) each.
/// hidden(b, i, j) tells which keys a query does not see; query i stands at position i + offset.
Tensor naive(std::map<std::string, Tensor> p, const PositionOptions& position, const Tensor& given_x,
             const Tensor& given_source, std::int64_t offset,
             const std::function<bool(std::int64_t, std::int64_t, std::int64_t)>& hidden) {
  for (auto& [name, tensor] : p) tensor = tensor.to(Device::cpu());
  const Tensor x = given_x.to(Device::cpu()), source = given_source.to(Device::cpu());
  const std::int64_t batch = x.size(0), queries = x.size(1), keys = source.size(1);
  const double s = std::pow(static_cast<double>(kHeadWidth), -0.25);
  const Tensor attended = Tensor::zeros({batch, queries, kHeads * kHeadWidth}, DType::f64, Device::cpu());
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < kHeads; ++h) {
      Matrix q = project(x, b, h, p.at("query.weight")), k = project(source, b, h, p.at("key.weight"));
      const Matrix v = project(source, b, h, p.at("value.weight"));
      if (position.kind == PositionKind::rope) {
        for (std::int64_t i = 0; i < queries; ++i) rotate(q[i], i + offset, position);
        for (std::int64_t j = 0; j < keys; ++j) rotate(k[j], j, position);
      }
      for (std::int64_t i = 0; i < queries; ++i) {
        std::vector<double> weight(static_cast<std::size_t>(keys));
        double total = 0;
        for (std::int64_t j = 0; j < keys; ++j) {
          if (hidden(b, i, j)) continue;
          double logit = 0;
          for (std::int64_t c = 0; c < kHeadWidth; ++c) {
            double term = s * k[j][c];
            if (position.kind == PositionKind::xl)
              for (std::int64_t m = 0; m < kWidth; ++m)
                term += element(p.at("position.projection.weight"), {h * kHeadWidth + c, m}) * s *
                        sinusoid(j - i - offset, m);
            logit += s * q[i][c] * term;
          }
          total += weight[j] = std::exp(logit);
        }
        for (std::int64_t c = 0; c < kHeadWidth; ++c) {
          double sum = 0;
          for (std::int64_t j = 0; j < keys; ++j) sum += weight[j] / total * v[j][c];
          attended.select(0, b).select(0, i).slice(0, h * kHeadWidth + c, h * kHeadWidth + c + 1).fill(sum);
        }
      }
    }
  }
  return tensor_of({batch, queries, kWidth}, [&](const Shape& at) {
    double sum = 0;
    for (std::int64_t c = 0; c < kHeads * kHeadWidth; ++c)
      sum += element(attended, {at[0], at[1], c}) * element(p.at("output.weight"), {at[2], c});
    return sum;
  });
}

TEST(MultiHeadAttention, equals_the_formula) {
  for (const auto& [name, position] : kPositions) {
    SCOPED_TRACE(name);
    const auto layer = make(options_with(position));
    const auto p = parameters_of(*layer);
    EXPECT_EQ(p.size(), position.kind == PositionKind::xl ? 5u : 4u);
    const Tensor x = random_tensor({2, 5, kWidth}, 1), longer = random_tensor({2, 8, kWidth}, 2);
    EXPECT_CLOSE(layer->forward(Variable(x)).output.data(),
                 naive(p, position, x, x, 0, [](auto, auto i, auto j) { return j > i; }), 1e-12);

    AttentionArguments past;  // three keys precede the queries
    past.key_source = Variable(longer);
    EXPECT_CLOSE(layer->forward(Variable(x), past).output.data(),
                 naive(p, position, x, longer, 3, [](auto, auto i, auto j) { return j > i + 3; }), 1e-12);

    AttentionArguments open;
    open.causal = false;
    open.key_source = Variable(longer);
    EXPECT_CLOSE(layer->forward(Variable(x), open).output.data(),
                 naive(p, position, x, longer, 0, [](auto, auto, auto) { return false; }), 1e-12);

    AttentionArguments masked;
    masked.mask = Tensor::zeros({5, 5}, DType::boolean);
    masked.mask.slice(0, 3, 5).slice(1, 1, 2).fill(1);
    masked.key_padding = Tensor::zeros({2, 5}, DType::boolean);
    masked.key_padding.slice(0, 1, 2).slice(1, 2, 3).fill(1);
    const auto hidden = [](auto b, auto i, auto j) { return j > i || (i >= 3 && j == 1) || (b == 1 && j == 2); };
    EXPECT_CLOSE(layer->forward(Variable(x), masked).output.data(), naive(p, position, x, x, 0, hidden), 1e-12);
  }
}

TEST(MultiHeadAttention, takes_values_from_a_source_of_their_own) {
  const auto layer = make(options_with(kPositions[1].options));
  const Variable x(random_tensor({2, 5, kWidth}, 1));
  AttentionArguments arguments;
  arguments.value_source = Variable(Tensor::zeros({2, 5, kWidth}, DType::f64));
  EXPECT_CLOSE(layer->forward(x, arguments).output.data(), Tensor::zeros({2, 5, kWidth}, DType::f64), 0.0);
}

TEST(MultiHeadAttention, passes_gradcheck) {
  for (const auto& [name, position] : kPositions) {
    SCOPED_TRACE(name);
    for (const double dropout : {0.0, 0.3}) {
      MultiHeadAttentionOptions options = options_with(position);
      options.bias = dropout > 0;
      options.dropout = dropout;
      const auto layer = make(options);
      AttentionArguments arguments;
      arguments.key_padding = Tensor::zeros({2, 5}, DType::boolean);
      arguments.key_padding.slice(0, 1, 2).slice(1, 2, 3).fill(1);
      expect_gradients(
          *layer,
          {Variable(random_tensor({2, 3, kWidth}, 1), true), Variable(random_tensor({2, 5, kWidth}, 2), true),
           Variable(random_tensor({2, 5, kWidth}, 3), true)},
          [&](const Variables& in) {
            arguments.key_source = in[1];
            arguments.value_source = in[2];
            return layer->forward(in[0], arguments).output;
          });
    }
  }
}

TEST(MultiHeadAttention, inspection_shows_the_probabilities) {
  const auto layer = make(options_with(kPositions[4].options));
  AttentionInspection inspection;
  AttentionArguments arguments;
  arguments.inspection = &inspection;
  layer->forward(Variable(random_tensor({2, 5, kWidth}, 1)), arguments);
  const Tensor& p = inspection.probabilities;
  ASSERT_EQ(p.shape(), (Shape{2, kHeads, 5, 5}));
  switchyard::testing::for_each_index({2, kHeads, 5}, [&](const Shape& row) {
    double sum = 0;
    for (std::int64_t j = 0; j < 5; ++j) {
      const double weight = element(p, {row[0], row[1], row[2], j});
      EXPECT_TRUE(j <= row[2] || weight == 0);
      sum += weight;
    }
    EXPECT_NEAR(sum, 1, 1e-12);
  });
  EXPECT_TRUE(inspection.selections.empty());
}

/// The rows of two heads [2 d, ...] as four heads, of which two each are alike: [4 d, ...].
Tensor each_head_twice(const Tensor& rows) {
  const Tensor first = rows.slice(0, 0, kHeadWidth), second = rows.slice(0, kHeadWidth, 2 * kHeadWidth);
  return ops::concat({first, first, second, second}, 0);
}

TEST(MultiHeadAttention, key_heads_serve_successive_query_heads) {
  for (const auto& [name, position] : kPositions) {
    SCOPED_TRACE(name);
    MultiHeadAttentionOptions options = grouped_options(position);
    const auto grouped = make(options);
    options.key_value_heads = 0;
    const auto plain = make(options);
    const auto target = parameters_of(*plain);
    for (const auto& [parameter, tensor] : parameters_of(*grouped)) {
      if (parameter.ends_with("bias")) tensor.copy_from(random_tensor(tensor.shape(), 5));
      const bool shared = parameter.starts_with("key") || parameter.starts_with("value");
      target.at(parameter).copy_from(shared ? each_head_twice(tensor) : tensor);
    }
    NoGradGuard no_grad;
    const Variable x(random_tensor({2, 5, kWidth}, 1));
    KeyValueCache cache;
    AttentionInspection inspection, expected;
    AttentionArguments arguments, inspected;
    arguments.inspection = &inspection;
    inspected.inspection = &expected;
    const Tensor y = plain->forward(x, inspected).output.data();
    EXPECT_CLOSE(grouped->forward(x, arguments).output.data(), y, 1e-13);
    EXPECT_CLOSE(inspection.probabilities, expected.probabilities, 1e-13);
    arguments = {};
    arguments.cache = &cache;
    EXPECT_CLOSE(grouped->forward(x, arguments).output.data(), y, 1e-13);
    EXPECT_EQ(cache.value.shape(), (Shape{2, 5, 2, kHeadWidth}));
  }
}

TEST(MultiHeadAttention, one_key_head_serves_all_in_bf16) {
  MultiHeadAttentionOptions options;
  options.width = 64;
  options.heads = 4;
  options.head_width = 64;
  options.key_value_heads = 1;
  const auto layer = make(options), half = make(options, DType::bf16);
  const Tensor x = random_tensor({2, 130, 64}, 1);
  const Variable in(x, true), half_in(x.to(DType::bf16), true);
  const Variable y = layer->forward(in).output, half_y = half->forward(half_in).output;
  EXPECT_CLOSE(half_y.data(), y.data(), 3e-2);
  sum(y * y).backward();
  sum(half_y * half_y).backward();
  EXPECT_CLOSE(half_in.grad(), in.grad(), 1e-1);
}

TEST(MultiHeadAttention, passes_gradcheck_with_shared_keys) {
  for (const auto& [name, position] : kPositions) {
    SCOPED_TRACE(name);
    const auto layer = make(grouped_options(position));
    expect_gradients(*layer, {Variable(random_tensor({2, 4, kWidth}, 1), true)},
                     [&](const Variables& in) { return layer->forward(in[0]).output; });
    AttentionArguments past;
    expect_gradients(
        *layer, {Variable(random_tensor({2, 1, kWidth}, 1), true), Variable(random_tensor({2, 5, kWidth}, 2), true)},
        [&](const Variables& in) {
          past.key_source = in[1];
          return layer->forward(in[0], past).output;
        });
  }
}

TEST(MultiHeadAttention, dropout_acts_in_training_only) {
  MultiHeadAttentionOptions options = options_with(kPositions[1].options);
  options.dropout = 0.5;
  const auto layer = make(options);
  const Variable x(random_tensor({2, 5, kWidth}, 1));
  const Tensor first = layer->forward(x).output.data();
  EXPECT_GT(switchyard::testing::max_error(layer->forward(x).output.data(), first), 1e-3);
  layer->eval();
  EXPECT_CLOSE(layer->forward(x).output.data(), layer->forward(x).output.data(), 0.0);
}

TEST(MultiHeadAttention, computes_in_bf16) {
  for (const auto& [name, position] : kPositions) {
    SCOPED_TRACE(name);
    const auto layer = make(options_with(position)), half = make(options_with(position), DType::bf16);
    const Tensor x = random_tensor({2, 5, kWidth}, 1);
    const Tensor y = half->forward(Variable(x.to(DType::bf16))).output.data();
    EXPECT_EQ(y.dtype(), DType::bf16);
    EXPECT_CLOSE(y, layer->forward(Variable(x)).output.data(), 3e-2);
  }
}

TEST(MultiHeadAttention, says_what_is_wrong) {
  MultiHeadAttentionOptions options;
  options.width = 10;
  options.heads = 3;
  EXPECT_ERROR(MultiHeadAttention{options}, "MultiHeadAttention: width 10 is not divisible by 3 heads");
  options.heads = 0;
  EXPECT_ERROR(MultiHeadAttention{options}, "MultiHeadAttention: width 10, 0 heads");
  options.heads = 2;
  options.key_value_heads = 3;
  EXPECT_ERROR(MultiHeadAttention{options}, "MultiHeadAttention: 3 key-value heads for 2 heads, expected a divisor");
  options.key_value_heads = 0;
  EXPECT_ERROR(MultiHeadAttention{options}, "PositionEncoding: 5 rotated channels of head width 5");
  options.head_width = 4;
  options.dropout = 1;
  EXPECT_ERROR(MultiHeadAttention{options}, "attention: dropout 1, expected 0 <= p < 1");
  options.dropout = 0;
  MultiHeadAttention layer(options);
  EXPECT_ERROR(layer.forward(Variable(Tensor::ones({5, 10}))), "MultiHeadAttention: x is [5, 10], expected");
  AttentionArguments arguments;
  arguments.key_source = Variable(Tensor::ones({1, 2, 10}));
  EXPECT_ERROR(layer.forward(Variable(Tensor::ones({1, 3, 10})), arguments),
               "attention: causal with 3 queries but only 2 keys");
  KeyValueCache cache;
  arguments = {};
  arguments.cache = &cache;
  layer.forward(Variable(Tensor::ones({1, 3, 10})), arguments);
  EXPECT_ERROR(layer.forward(Variable(Tensor::ones({2, 1, 10})), arguments),
               "append: f32 [2, 1, 2, 4] does not continue the cached f32 [1, 3, 2, 4]");
}

TEST(PositionEncoding, sinusoid_table_is_the_formula) {
  const Tensor table = sinusoid_table(-3, 2, 6, DType::f64, default_device());
  EXPECT_CLOSE(table, tensor_of({6, 6}, [](const Shape& i) { return sinusoid(i[0] - 3, i[1]); }), 1e-15);
  EXPECT_ERROR(sinusoid_table(1, 0, 6, DType::f64, default_device()), "sinusoid_table: positions 1 to 0, width 6");
}

TEST(PositionEncoding, tables_follow_the_sequence_and_the_dtype) {
  // Longer and shorter sequences in turn, then another dtype: a stale table would show.
  for (const auto& [name, position] : kPositions) {
    SCOPED_TRACE(name);
    const auto layer = make(options_with(position));
    const auto p = parameters_of(*layer);
    for (const std::int64_t length : {3, 70, 5, 130}) {
      const Tensor x = random_tensor({1, length, kWidth}, 1);
      EXPECT_CLOSE(layer->forward(Variable(x)).output.data(),
                   naive(p, position, x, x, 0, [](auto, auto i, auto j) { return j > i; }), 1e-11);
    }
    layer->to(DType::f32);
    const Tensor x = random_tensor({1, 9, kWidth}, 1);
    EXPECT_CLOSE(layer->forward(Variable(x.to(DType::f32))).output.data(),
                 naive(p, position, x, x, 0, [](auto, auto i, auto j) { return j > i; }), 1e-5);
  }
}

}  // namespace
}  // namespace switchyard::nn
