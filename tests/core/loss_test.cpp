#include "core/ops/loss.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/close.h"
#include "tests/support/device.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using testing::element;
using testing::kFloatingDTypes;
using testing::layouts;
using testing::random_tensor;
using testing::tensor_of;
using testing::tolerance;

constexpr std::int64_t kIgnored = -100;

Tensor random_targets(std::int64_t count, std::int64_t classes, std::uint64_t seed) {
  const Tensor targets = random_tensor({count}, seed, DType::f64, 0, static_cast<double>(classes)).to(DType::i64);
  if (count > 2) targets.slice(0, 2, count, 3).fill(kIgnored);
  return targets;
}

std::int64_t target_of(const Tensor& targets, std::int64_t row) {
  return static_cast<std::int64_t>(element(targets, {row}));
}

double log_sum_exp(const Tensor& logits, std::int64_t row) {
  double largest = -INFINITY, sum = 0;
  for (std::int64_t j = 0; j < logits.size(1); ++j) largest = std::max(largest, element(logits, {row, j}));
  for (std::int64_t j = 0; j < logits.size(1); ++j) sum += std::exp(element(logits, {row, j}) - largest);
  return largest + std::log(sum);
}

Tensor naive_losses(const Tensor& logits, const Tensor& targets) {
  return tensor_of({logits.size(0)}, [&](const Shape& at) {
    const std::int64_t target = target_of(targets, at[0]);
    return target == kIgnored ? 0 : log_sum_exp(logits, at[0]) - element(logits, {at[0], target});
  });
}

/// Everything linear_cross_entropy gives, in double, by plain sums.
ops::LinearCrossEntropyResult naive_linear_cross_entropy(const Tensor& x, const Tensor& w, const Tensor& bias,
                                                         const Tensor& targets) {
  const std::int64_t n = x.size(0), width = x.size(1), classes = w.size(0);
  const Tensor logits = tensor_of({n, classes}, [&](const Shape& at) {
    double sum = bias.defined() ? element(bias, {at[1]}) : 0;
    for (std::int64_t i = 0; i < width; ++i) sum += element(x, {at[0], i}) * element(w, {at[1], i});
    return sum;
  });
  double count = 0, loss = 0;
  for (std::int64_t row = 0; row < n; ++row) count += target_of(targets, row) != kIgnored;
  const Tensor losses = naive_losses(logits, targets);
  for (std::int64_t row = 0; row < n; ++row) loss += count > 0 ? element(losses, {row}) / count : 0;
  const Tensor dlogits = tensor_of({n, classes}, [&](const Shape& at) {
    const std::int64_t target = target_of(targets, at[0]);
    if (target == kIgnored) return 0.0;
    return (std::exp(element(logits, at) - log_sum_exp(logits, at[0])) - (at[1] == target)) / count;
  });
  const Tensor dx = tensor_of({n, width}, [&](const Shape& at) {
    double sum = 0;
    for (std::int64_t j = 0; j < classes; ++j) sum += element(dlogits, {at[0], j}) * element(w, {j, at[1]});
    return sum;
  });
  const Tensor dw = tensor_of({classes, width}, [&](const Shape& at) {
    double sum = 0;
    for (std::int64_t row = 0; row < n; ++row) sum += element(dlogits, {row, at[0]}) * element(x, {row, at[1]});
    return sum;
  });
  const Tensor dbias = tensor_of({classes}, [&](const Shape& at) {
    double sum = 0;
    for (std::int64_t row = 0; row < n; ++row) sum += element(dlogits, {row, at[0]});
    return sum;
  });
  return {Tensor::scalar(loss, DType::f64), dx, dw, dbias};
}

TEST(CrossEntropy, PerRowMatchesPlainLoops) {
  for (const DType dtype : kFloatingDTypes)
    for (const auto& [n, classes] : {std::pair{7, 17}, {1, 1}, {40, 3}, {3, 1000}, {0, 5}})
      for (const Tensor& logits : layouts(random_tensor({n, classes}, 1, dtype, -6, 6))) {
        const Tensor targets = random_targets(n, classes, 2);
        const Tensor losses = ops::cross_entropy_per_row(logits, targets, kIgnored);
        EXPECT_EQ(losses.dtype(), dtype == DType::f64 ? DType::f64 : DType::f32);
        EXPECT_CLOSE(losses, naive_losses(logits, targets), dtype == DType::f64 ? 1e-13 : 2e-6);
      }
}

TEST(CrossEntropy, IsStableForLargeLogits) {
  for (const DType dtype : kFloatingDTypes) {
    const Tensor logits = Tensor::from<double>({1000, 0, -1000, -1000, -1000, -1000}, {2, 3}).to(dtype);
    const Tensor targets = Tensor::from<std::int64_t>({1, 0}, {2});
    EXPECT_CLOSE(ops::cross_entropy_per_row(logits, targets, kIgnored),
                 Tensor::from<double>({1000, std::log(3.0)}, {2}), 1e-6);
  }
}

TEST(CrossEntropy, HiddenClassesAndNonFiniteRows) {
  const double inf = INFINITY;
  const Tensor logits = Tensor::from<double>({-inf, 1, 1, NAN, 0, 0}, {2, 3});
  const Tensor losses = ops::cross_entropy_per_row(logits, Tensor::from<std::int64_t>({1, 1}, {2}), kIgnored);
  EXPECT_CLOSE(losses, Tensor::from<double>({std::log(2.0), NAN}, {2}), 1e-13);
}

TEST(LinearCrossEntropy, MatchesPlainLoopsInAnyChunks) {
  for (const DType dtype : kFloatingDTypes)
    for (const auto& [n, width, classes] : {std::tuple<int, int, int>{11, 6, 17}, {1, 1, 1}, {30, 3, 2}, {0, 4, 5}})
      for (const bool with_bias : {false, true}) {
        const Tensor x = random_tensor({n, width}, 1, dtype), w = random_tensor({classes, width}, 2, dtype);
        const Tensor bias = with_bias ? random_tensor({classes}, 3, dtype) : Tensor();
        const Tensor targets = random_targets(n, classes, 4);
        const auto expected = naive_linear_cross_entropy(x, w, bias, targets);
        const double allowed = dtype == DType::f32 ? 5e-6 : dtype == DType::bf16 ? 1.5e-2 : tolerance(dtype);
        for (const std::int64_t chunk : {1, 3, 11, 1024}) {
          const auto result = ops::linear_cross_entropy(x, w, bias, targets, kIgnored, true, chunk);
          EXPECT_EQ(result.loss.shape(), Shape{});
          EXPECT_EQ(result.loss.dtype(), dtype == DType::f64 ? DType::f64 : DType::f32);
          EXPECT_EQ(result.dw.dtype(), dtype);
          EXPECT_CLOSE(result.loss, expected.loss, dtype == DType::f64 ? 1e-13 : 2e-6);
          EXPECT_CLOSE(result.dx, expected.dx, allowed);
          EXPECT_CLOSE(result.dw, expected.dw, allowed);
          EXPECT_EQ(result.dbias.defined(), with_bias);
          if (with_bias) {
            EXPECT_CLOSE(result.dbias, expected.dbias, allowed);
          }
          const auto loss_only = ops::linear_cross_entropy(x, w, bias, targets, kIgnored, false, chunk);
          EXPECT_EQ(loss_only.loss.item<double>(), result.loss.item<double>());
          EXPECT_FALSE(loss_only.dx.defined() || loss_only.dw.defined() || loss_only.dbias.defined());
        }
      }
}

TEST(LinearCrossEntropy, ReadsViews) {
  for (const Tensor& x : layouts(random_tensor({9, 4}, 1)))
    for (const Tensor& w : layouts(random_tensor({5, 4}, 2))) {
      const Tensor targets = random_targets(9, 5, 3);
      const auto expected = naive_linear_cross_entropy(x, w, {}, targets);
      const auto result = ops::linear_cross_entropy(x, w, {}, targets, kIgnored, true, 4);
      EXPECT_CLOSE(result.loss, expected.loss, 1e-13);
      EXPECT_CLOSE(result.dx, expected.dx, 1e-12);
      EXPECT_CLOSE(result.dw, expected.dw, 1e-12);
    }
}

TEST(LinearCrossEntropy, NothingButIgnoredTargets) {
  const Tensor x = random_tensor({3, 2}, 1), w = random_tensor({4, 2}, 2);
  const auto result = ops::linear_cross_entropy(x, w, {}, Tensor::full({3}, kIgnored, DType::i64), kIgnored, true);
  EXPECT_EQ(result.loss.item<double>(), 0);
  EXPECT_EQ(result.dx.to_vector<double>(), std::vector<double>(6, 0.0));
  EXPECT_EQ(result.dw.to_vector<double>(), std::vector<double>(8, 0.0));
}

TEST(LinearCrossEntropy, Bf16SumsWeightGradientsInFloat) {
  // 600 chunks add equal, tiny terms: a sum kept in bf16 would stop growing.
  constexpr std::int64_t kRows = 600;
  const Tensor x = Tensor::ones({kRows, 1}, DType::bf16), w = Tensor::zeros({2, 1}, DType::bf16);
  const auto result = ops::linear_cross_entropy(x, w, {}, Tensor::zeros({kRows}, DType::i64), kIgnored, true, 1);
  EXPECT_CLOSE(result.dw, Tensor::from<double>({-0.5, 0.5}, {2, 1}), 5e-3);
}

TEST(LinearCrossEntropy, NeverHoldsAllLogits) {
  const Tensor x = random_tensor({512, 4}, 1, DType::f32), w = random_tensor({1000, 4}, 2, DType::f32);
  const Tensor targets = random_targets(512, 1000, 3);
  const std::size_t before = memory_statistics(default_device()).current_bytes;
  reset_peak_memory(default_device());
  ops::linear_cross_entropy(x, w, {}, targets, kIgnored, true, 16);
  EXPECT_LT(memory_statistics(default_device()).peak_bytes - before, std::size_t{16} * 1000 * 4 + 100'000);
}

Tensor targets_ending_in(std::int64_t last) { return Tensor::from<std::int64_t>({0, kIgnored, last}, {3}); }

TEST(CrossEntropy, TargetsOutsideTheClasses) {
  SKIP_ON_GPU("the host does not read targets there");
  const Tensor logits = Tensor::zeros({3, 256});
  EXPECT_ERROR(ops::cross_entropy_per_row(logits, targets_ending_in(300), kIgnored),
               "cross_entropy: target 300 at row 2 is outside 0..255 and is not ignore_index -100");
  EXPECT_ERROR(ops::cross_entropy_per_row(logits, targets_ending_in(-1), kIgnored),
               "cross_entropy: target -1 at row 2");
  EXPECT_ERROR(ops::linear_cross_entropy(Tensor::zeros({3, 4}), Tensor::zeros({256, 4}), {}, targets_ending_in(256),
                                         kIgnored, true),
               "target 256");
}

TEST(CrossEntropy, Errors) {
  const Tensor logits = Tensor::zeros({3, 256}), targets = targets_ending_in(0);
  EXPECT_ERROR(ops::cross_entropy_per_row(logits, Tensor::zeros({2}, DType::i64), kIgnored),
               "cross_entropy: expected one target per row, [3], got [2]");
  EXPECT_ERROR(ops::cross_entropy_per_row(logits, Tensor::zeros({3}), kIgnored),
               "cross_entropy: targets are f32, expected i64");
  EXPECT_ERROR(ops::cross_entropy_per_row(Tensor::zeros({3}), targets, kIgnored),
               "cross_entropy: expected logits [n, V], got [3]");
  const Tensor x = Tensor::zeros({3, 4});
  const std::string device = testing::text_of(default_device());
  EXPECT_ERROR(ops::linear_cross_entropy(x, Tensor::zeros({256, 5}), {}, targets, kIgnored, true),
               "linear_cross_entropy: expected x [n, d] and w [V, d], got [3, 4] and [256, 5]");
  EXPECT_ERROR(ops::linear_cross_entropy(x, Tensor::zeros({256, 4}), Tensor::zeros({4}), targets, kIgnored, true),
               "linear_cross_entropy: expected bias [256] of f32 on " + device + ", got [4] of f32 on " + device);
  EXPECT_ERROR(ops::linear_cross_entropy(x, Tensor::zeros({256, 4}), {}, targets, kIgnored, true, 0),
               "linear_cross_entropy: rows_per_chunk is 0, expected at least 1");
}

}  // namespace
}  // namespace switchyard
