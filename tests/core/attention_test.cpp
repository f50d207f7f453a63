#include "core/ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/philox.h"
#include "tests/support/close.h"
#include "tests/support/device.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using ops::AttentionOptions;
using testing::element;
using testing::numeric_gradient;
using testing::random_mask;
using testing::random_tensor;
using testing::set_element;
using testing::tensor_of;

struct Sizes {
  std::int64_t batch, queries, keys, heads, width, value_width;
};

struct Operands {
  Tensor query, key, value, dout;
  AttentionOptions options;
};

enum Feature { kCausal = 1, kOffset = 2, kMask = 4, kPadding = 8, kPositions = 16, kDropout = 32, kFeatures = 64 };

Operands operands(const Sizes& size, int features, DType dtype) {
  Operands in;
  in.query = random_tensor({size.batch, size.queries, size.heads, size.width}, 1, dtype, -2, 2);
  in.key = random_tensor({size.batch, size.keys, size.heads, size.width}, 2, dtype, -2, 2);
  in.value = random_tensor({size.batch, size.keys, size.heads, size.value_width}, 3, dtype);
  in.dout = random_tensor({size.batch, size.queries, size.heads, size.value_width}, 4, dtype);
  AttentionOptions& options = in.options;
  std::mt19937_64 random(5);
  options.scale = 0.7;
  options.causal = features & kCausal;
  if (features & kOffset) options.query_offset = 3;
  if (features & kMask) options.mask = random_mask({size.queries, size.keys}, random, 30);
  if (features & kPadding) options.key_padding = random_mask({size.batch, size.keys}, random, 30);
  if (features & kPositions) {
    // Just the rows that visible pairs need.
    options.position_zero = size.queries - 1 + options.query_offset;
    const std::int64_t last = size.keys - 1 - options.query_offset;
    const std::int64_t rows = options.position_zero + (options.causal ? std::min<std::int64_t>(last, 0) : last) + 1;
    options.position_key = random_tensor({std::max<std::int64_t>(rows, 0), size.heads, size.width}, 7, dtype);
  }
  if (features & kDropout) {
    options.dropout = 0.3;
    options.stream = {99, Tensor::from<std::int64_t>({1000}, {1}), 17};
  }
  return in;
}

Operands on_cpu(Operands in) {
  for (Tensor* x : {&in.query, &in.key, &in.value, &in.dout, &in.options.mask, &in.options.key_padding,
                    &in.options.position_key, &in.options.stream.base})
    if (x->defined()) *x = x->to(Device::cpu());
  return in;
}

/// The formula for one (batch, head, query), in double.
struct NaiveRow {
  std::vector<double> probability, factor;  ///< factor: dropout's
  double log_normalizer;

  NaiveRow(const Operands& in, std::int64_t b, std::int64_t i, std::int64_t h) {
    const AttentionOptions& options = in.options;
    const std::int64_t queries = in.query.size(1), keys = in.key.size(1), heads = in.query.size(2);
    std::vector<double> logits;
    double largest = -INFINITY, sum = 0;
    for (std::int64_t j = 0; j < keys; ++j) {
      const std::int64_t row = j - i - options.query_offset + options.position_zero;
      const bool hidden = (options.causal && j > i + options.query_offset) ||
                          (options.mask.defined() && element(options.mask, {i, j}) != 0) ||
                          (options.key_padding.defined() && element(options.key_padding, {b, j}) != 0);
      double logit = hidden ? -INFINITY : 0;
      for (std::int64_t c = 0; !hidden && c < in.query.size(3); ++c) {
        double meets = element(in.key, {b, j, h, c});
        if (options.position_key.defined()) meets += element(options.position_key, {row, h, c});
        logit += options.scale * element(in.query, {b, i, h, c}) * meets;
      }
      logits.push_back(logit);
      largest = std::max(largest, logit);
    }
    for (const double logit : logits) sum += std::isinf(logit) ? 0 : std::exp(logit - largest);
    log_normalizer = sum > 0 ? largest + std::log(sum) : -INFINITY;
    for (std::int64_t j = 0; j < keys; ++j) {
      const double logit = logits[static_cast<std::size_t>(j)];
      probability.push_back(std::isinf(logit) ? 0 : std::exp(logit - largest) / sum);
      factor.push_back(1);
      if (options.dropout == 0) continue;
      const auto at = static_cast<std::uint64_t>(((b * heads + h) * queries + i) * keys + j);
      const auto start = static_cast<std::uint64_t>(options.stream.base.item<std::int64_t>()) + options.stream.offset;
      const bool dropped =
          uniform_from_bits(philox_element(options.stream.seed, start, at)) < static_cast<float>(options.dropout);
      factor.back() = dropped ? 0 : 1 / (1 - options.dropout);
    }
  }
};

struct Naive {
  Tensor out, log_normalizer, probabilities, dquery, dkey, dvalue, dposition_key;

  explicit Naive(const Operands& given) {
    const Operands in = on_cpu(given);
    const std::int64_t batch = in.query.size(0), queries = in.query.size(1), heads = in.query.size(2);
    const std::int64_t keys = in.key.size(1), width = in.query.size(3), value_width = in.value.size(3);
    const auto zeros = [](const Shape& shape) { return Tensor::zeros(shape, DType::f64, Device::cpu()); };
    out = zeros(in.dout.shape());
    log_normalizer = zeros({batch, heads, queries});
    probabilities = zeros({batch, heads, queries, keys});
    dquery = zeros(in.query.shape());
    dkey = zeros(in.key.shape());
    dvalue = zeros(in.value.shape());
    const bool positions = in.options.position_key.defined();
    if (positions) dposition_key = zeros(in.options.position_key.shape());
    const auto at = [](const Tensor& x, const Shape& index) -> double& {
      std::int64_t offset = 0;
      for (std::int64_t axis = 0; axis < x.rank(); ++axis)
        offset += index[static_cast<std::size_t>(axis)] * x.stride(axis);
      return x.data<double>()[offset];
    };
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t i = 0; i < queries; ++i) {
          const NaiveRow row(in, b, i, h);
          at(log_normalizer, {b, h, i}) = row.log_normalizer;
          std::vector<double> gradient;  // of each probability
          double mean = 0;
          for (std::int64_t j = 0; j < keys; ++j) {
            const auto n = static_cast<std::size_t>(j);
            at(probabilities, {b, h, i, j}) = row.probability[n];
            gradient.push_back(0);
            for (std::int64_t c = 0; c < value_width; ++c) {
              const double weight = row.probability[n] * row.factor[n], dout = element(in.dout, {b, i, h, c});
              at(out, {b, i, h, c}) += weight * element(in.value, {b, j, h, c});
              at(dvalue, {b, j, h, c}) += weight * dout;
              gradient.back() += row.factor[n] * dout * element(in.value, {b, j, h, c});
            }
            mean += row.probability[n] * gradient.back();
          }
          for (std::int64_t j = 0; j < keys; ++j) {
            const auto n = static_cast<std::size_t>(j);
            if (row.probability[n] == 0) continue;
            const double dlogit = in.options.scale * row.probability[n] * (gradient[n] - mean);
            const std::int64_t place = j - i - in.options.query_offset + in.options.position_zero;
            for (std::int64_t c = 0; c < width; ++c) {
              const double q = element(in.query, {b, i, h, c});
              at(dquery, {b, i, h, c}) += dlogit * element(in.key, {b, j, h, c});
              at(dkey, {b, j, h, c}) += dlogit * q;
              if (!positions) continue;
              at(dquery, {b, i, h, c}) += dlogit * element(in.options.position_key, {place, h, c});
              at(dposition_key, {place, h, c}) += dlogit * q;
            }
          }
        }
  }
};

void expect_equal_to_naive(const Operands& in, double allowed) {
  const Naive naive(in);
  const auto result = ops::attention(in.query, in.key, in.value, in.options);
  EXPECT_EQ(result.out.dtype(), in.query.dtype());
  EXPECT_CLOSE(result.out, naive.out, allowed);
  EXPECT_CLOSE(result.log_normalizer, naive.log_normalizer, allowed);
  EXPECT_CLOSE(ops::attention_probabilities(in.query, in.key, in.options), naive.probabilities, allowed);
  const auto gradients = ops::attention_backward(in.dout, in.query, in.key, in.value, result, in.options);
  EXPECT_CLOSE(gradients.dquery, naive.dquery, 2 * allowed);
  EXPECT_CLOSE(gradients.dkey, naive.dkey, 2 * allowed);
  EXPECT_CLOSE(gradients.dvalue, naive.dvalue, 2 * allowed);
  ASSERT_EQ(gradients.dposition_key.defined(), naive.dposition_key.defined());
  if (naive.dposition_key.defined()) {
    EXPECT_CLOSE(gradients.dposition_key, naive.dposition_key, 2 * allowed);
  }
}

TEST(Attention, EqualsTheFormulaForAllOptions) {
  for (int features = 0; features < kFeatures; ++features) {
    SCOPED_TRACE(::testing::Message() << "features " << features);
    expect_equal_to_naive(operands({2, 5, 8, 3, 4, 6}, features, DType::f64), 1e-11);
    expect_equal_to_naive(operands({3, 6, 4, 2, 3, 3}, features, DType::f64), 1e-11);
  }
}

TEST(Attention, EqualsTheFormulaOverSeveralBlocks) {
  for (const int features : {0, kCausal + 0, kCausal | kOffset, kCausal | kPositions, kOffset | kPositions,
                             kMask | kPadding | kPositions | kDropout, kCausal | kOffset | kPositions | kDropout}) {
    SCOPED_TRACE(::testing::Message() << "features " << features);
    expect_equal_to_naive(operands({1, 150, 153, 2, 4, 3}, features, DType::f64), 1e-11);
  }
}

TEST(Attention, InEveryDtype) {
  for (const int features : {0, kCausal | kPositions, kMask | kPadding | kDropout, kFeatures - 1}) {
    expect_equal_to_naive(operands({2, 33, 40, 2, 12, 10}, features, DType::f32), 1e-5);
    expect_equal_to_naive(operands({2, 33, 40, 2, 12, 10}, features, DType::bf16), 3e-2);
  }
}

TEST(Attention, OfEdgeSizes) {
  for (const Sizes& size : {Sizes{1, 1, 1, 1, 1, 1}, {2, 1, 70, 2, 8, 8}, {2, 3, 0, 2, 4, 4}, {1, 70, 1, 1, 3, 2}}) {
    for (const int features : {0, kCausal | kOffset, kCausal | kPositions}) {
      SCOPED_TRACE(::testing::Message() << size.queries << " queries, " << size.keys << " keys, features " << features);
      expect_equal_to_naive(operands(size, features, DType::f64), 1e-11);
    }
  }
  for (const Sizes& size : {Sizes{0, 3, 3, 2, 4, 4}, {2, 0, 3, 2, 4, 4}}) {
    const Operands in = operands(size, 0, DType::f32);
    const auto result = ops::attention(in.query, in.key, in.value, in.options);
    EXPECT_EQ(result.out.shape(), in.dout.shape());
    const auto gradients = ops::attention_backward(in.dout, in.query, in.key, in.value, result, in.options);
    EXPECT_CLOSE(gradients.dkey, Tensor::zeros(in.key.shape()), 0);
  }
}

TEST(Attention, ReadsStridedViews) {
  Operands in = operands({2, 7, 7, 3, 4, 4}, kCausal, DType::f64);
  const Tensor fused = random_tensor({2, 7, 3, 12}, 8, DType::f64);  // query, key, value of each head side by side
  in.query = fused.slice(3, 0, 4);
  in.key = fused.slice(3, 4, 8);
  in.value = fused.slice(3, 8, 12);
  in.dout = random_tensor({2, 3, 7, 4}, 9, DType::f64).transpose(1, 2);
  expect_equal_to_naive(in, 1e-11);
  in.key = random_tensor({2, 7, 3, 8}, 10, DType::f64).slice(3, 0, 8, 2);  // no unit stride
  in.value = random_tensor({2, 1, 3, 4}, 11, DType::f64).broadcast_to({2, 7, 3, 4});
  expect_equal_to_naive(in, 1e-11);
}

TEST(Attention, QueryThatSeesNothingGivesZeroAndNoGradient) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    Operands in = operands({1, 3, 4, 2, 5, 5}, kPositions, dtype);
    in.options.mask = Tensor::zeros({3, 4}, DType::boolean);
    in.options.mask.select(0, 1).fill(1);
    const auto result = ops::attention(in.query, in.key, in.value, in.options);
    EXPECT_CLOSE(result.out.select(1, 1), Tensor::zeros({1, 2, 5}), 0);
    const auto gradients = ops::attention_backward(in.dout, in.query, in.key, in.value, result, in.options);
    EXPECT_CLOSE(gradients.dquery.select(1, 1), Tensor::zeros({1, 2, 5}), 0);
    in.options.mask.fill(1);
    const auto blind = ops::attention(in.query, in.key, in.value, in.options);
    EXPECT_CLOSE(blind.out, Tensor::zeros(blind.out.shape()), 0);
    const auto none = ops::attention_backward(in.dout, in.query, in.key, in.value, blind, in.options);
    EXPECT_CLOSE(none.dkey, Tensor::zeros(in.key.shape()), 0);
    EXPECT_CLOSE(none.dvalue, Tensor::zeros(in.value.shape()), 0);
    EXPECT_CLOSE(none.dposition_key, Tensor::zeros(in.options.position_key.shape()), 0);
  }
}

TEST(Attention, LargeLogitsStayFiniteAndNanComesThrough) {
  Operands in = operands({1, 4, 4, 1, 4, 4}, kCausal, DType::f32);
  in.options.scale = 1000;
  for (const float value : ops::attention(in.query, in.key, in.value, in.options).out.to_vector<float>()) {
    EXPECT_TRUE(std::isfinite(value));
  }
  set_element(in.query, {0, 1, 0, 0}, NAN);
  const auto out = ops::attention(in.query, in.key, in.value, in.options).out;
  EXPECT_TRUE(std::isnan(out.select(1, 1).to_vector<float>()[0]));
  EXPECT_FALSE(std::isnan(out.select(1, 2).to_vector<float>()[0]));
}

TEST(Attention, SumsOverTheBatchDoNotDependOnItsCutting) {
  // More batch entries than partial sums of dposition_key.
  expect_equal_to_naive(operands({37, 4, 5, 1, 3, 2}, kPositions, DType::f64), 1e-11);
}

TEST(Attention, IsDeterministic) {
  const Operands in = operands({9, 70, 70, 3, 8, 8}, kCausal | kPositions | kDropout, DType::f32);
  const auto run = [&] {
    const auto result = ops::attention(in.query, in.key, in.value, in.options);
    const auto gradients = ops::attention_backward(in.dout, in.query, in.key, in.value, result, in.options);
    auto values = result.out.to_vector<float>();
    for (const Tensor& x : {gradients.dquery, gradients.dkey, gradients.dvalue, gradients.dposition_key}) {
      const auto more = x.to_vector<float>();
      values.insert(values.end(), more.begin(), more.end());
    }
    return values;
  };
  const auto first = run();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(run(), first);
}

TEST(Attention, GradientsAreThoseOfTheForwardPass) {
  const Operands in = operands({2, 4, 5, 2, 3, 2}, kPositions | kMask | kDropout, DType::f64);
  const auto objective = [&] {
    const auto out = ops::attention(in.query, in.key, in.value, in.options).out.to_vector<double>();
    const auto dout = in.dout.to_vector<double>();
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * dout[i];
    return sum;
  };
  const auto numeric = [&](const Tensor& parameter) { return numeric_gradient(parameter, objective); };
  const auto result = ops::attention(in.query, in.key, in.value, in.options);
  const auto gradients = ops::attention_backward(in.dout, in.query, in.key, in.value, result, in.options);
  EXPECT_CLOSE(gradients.dquery, numeric(in.query), 1e-8);
  EXPECT_CLOSE(gradients.dkey, numeric(in.key), 1e-8);
  EXPECT_CLOSE(gradients.dvalue, numeric(in.value), 1e-8);
  EXPECT_CLOSE(gradients.dposition_key, numeric(in.options.position_key), 1e-8);
}

TEST(Attention, DecodingEqualsTheRowsOfTheWhole) {
  const Operands in = operands({2, 20, 20, 2, 8, 8}, kCausal, DType::f64);
  const Tensor whole = ops::attention(in.query, in.key, in.value, in.options).out;
  for (std::int64_t position = 0; position < 20; ++position) {
    AttentionOptions options = in.options;
    options.query_offset = position;
    const Tensor step = ops::attention(in.query.slice(1, position, position + 1), in.key.slice(1, 0, position + 1),
                                       in.value.slice(1, 0, position + 1), options)
                            .out;
    EXPECT_CLOSE(step, whole.slice(1, position, position + 1), 1e-12);
  }
}

TEST(Attention, Errors) {
  const Operands in = operands({2, 5, 8, 3, 4, 6}, 0, DType::f32);
  const auto run = [&](const Tensor& query, const Tensor& key, const Tensor& value,
                       const AttentionOptions& options = {}) { return ops::attention(query, key, value, options).out; };
  const auto with = [&](auto&& change) {
    AttentionOptions options;
    change(options);
    return run(in.query, in.key, in.value, options);
  };
  EXPECT_ERROR(run(in.query.select(0, 0), in.key, in.value),
               "attention: query has shape [5, 3, 4], expected four axes [B, T, H, d]");
  EXPECT_ERROR(run(in.query, {}, in.value), "attention: key is undefined");
  EXPECT_ERROR(run(in.query, in.key.to(DType::f64), in.value), "attention: key is f64, expected f32");
  EXPECT_ERROR(run(in.query, in.key.slice(2, 0, 2), in.value),
               "attention: key has shape [2, 8, 2, 4], expected [2, S, 3, 4] for query [2, 5, 3, 4]");
  EXPECT_ERROR(run(in.query, in.key, in.value.slice(1, 0, 7)),
               "attention: value has shape [2, 7, 3, 6], expected [2, 8, 3, dv] for key [2, 8, 3, 4]");
  EXPECT_ERROR(with([](auto& o) { o.query_offset = -1; }), "attention: query_offset is -1, expected 0 or more");
  EXPECT_ERROR(with([](auto& o) { o.dropout = 1; }), "attention: dropout is 1, expected 0 <= p < 1");
  EXPECT_ERROR(with([](auto& o) { o.dropout = 0.1; }),
               "attention: dropout needs a random stream on " + testing::text_of(default_device()));
  EXPECT_ERROR(with([](auto& o) { o.scale = NAN; }), "attention: scale is nan");
  EXPECT_ERROR(with([](auto& o) {
                 o.mask = Tensor::zeros({8, 5}, DType::boolean);
               }),
               "attention: mask has shape [8, 5], expected [5, 8]");
  EXPECT_ERROR(with([](auto& o) { o.mask = Tensor::zeros({5, 8}); }), "attention: mask must be bool, got f32");
  EXPECT_ERROR(with([](auto& o) {
                 o.key_padding = Tensor::zeros({2, 5}, DType::boolean);
               }),
               "attention: key_padding has shape [2, 5], expected [2, 8]");
  EXPECT_ERROR(with([](auto& o) {
                 o.position_key = Tensor::zeros({12, 3, 5});
               }),
               "attention: position_key has shape [12, 3, 5], expected [R, 3, 4] for query [2, 5, 3, 4]");
  EXPECT_ERROR(with([](auto& o) {
                 o.position_key = Tensor::zeros({11, 3, 4});
                 o.position_zero = 4;
               }),
               "attention: position_key has 11 rows with position_zero 4, visible pairs need rows 0 to 11");
  EXPECT_ERROR(ops::attention_backward(in.dout.slice(1, 0, 4), in.query, in.key, in.value,
                                       ops::attention(in.query, in.key, in.value, {}), {}),
               "attention_backward: dout has shape [2, 4, 3, 6], expected [2, 5, 3, 6]");
  EXPECT_ERROR(ops::attention_backward(in.dout, in.query, in.key, in.value, {in.dout, {}}, {}),
               "attention_backward: log_normalizer must be the forward result of shape [2, 3, 5]");
}

}  // namespace
}  // namespace switchyard
