#include "moe/conversion/router_training.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "core/ops/gate.h"
#include "core/ops/matmul.h"
#include "core/ops/norm.h"
#include "core/ops/reduce.h"

namespace switchyard::moe {
namespace {

using ops::Unary;

constexpr std::int64_t kChunkValues = std::int64_t{1} << 24;  // hidden values held at a time
constexpr std::int64_t kGramRows = 64;                        // of the matrices that norms are computed by

/// The part of the weights that activations and norms are computed by, in `dtype`.
ops::ExpertLayer layer_in(DType dtype, const ExpertWeights& weights) {
  const auto in_dtype = [&](const Tensor& weight) { return weight.defined() ? weight.to(dtype) : weight; };
  return {in_dtype(weights.up), in_dtype(weights.up_bias), in_dtype(weights.gate), in_dtype(weights.gate_bias),
          in_dtype(weights.down)};
}

/// [N, E] of f(activations of the neurons [n, E, S]) [n, E] for chunks of n rows, in the compute dtype.
template <class F>
Tensor per_expert(const Tensor& rows, const ExpertWeights& weights, ops::Activation activation, F f) {
  check(rows.rank() == 2 && rows.size(1) == weights.width(), "expert targets: rows must be [N, ", weights.width(),
        "], got ", rows.shape());
  const ops::ExpertLayer layer = layer_in(rows.dtype(), weights);
  const std::int64_t experts = layer.experts(), neurons = layer.expert_width();
  const DType dtype = ops::compute_dtype(rows.dtype());
  const Tensor result = Tensor::empty({rows.size(0), experts}, dtype, rows.device());
  const std::int64_t chunk = std::max<std::int64_t>(1, kChunkValues / (experts * neurons));
  for (std::int64_t first = 0; first < rows.size(0); first += chunk) {
    const std::int64_t last = std::min(first + chunk, rows.size(0));
    const Tensor hidden = ops::all_neurons(rows.slice(0, first, last), layer, activation, dtype);
    result.slice(0, first, last).copy_from(f(hidden.view({last - first, experts, neurons})));
  }
  return result;
}

/// W W^T of each expert's second matrix, those of some experts together on the diagonal of one matrix: [E / G, G S, G
/// S]. Products with matrices of a few rows would leave a GPU idle.
Tensor gram_blocks(const ExpertWeights& weights, DType dtype) {
  const std::int64_t experts = weights.experts(), neurons = weights.expert_width();
  std::int64_t together = std::max<std::int64_t>(1, std::min(experts, kGramRows / neurons));
  while (experts % together != 0) --together;
  const std::int64_t rows = together * neurons;
  const Tensor w2 = weights.down.to(dtype).reshape({experts / together, rows, weights.output_width()});
  std::vector<double> own(static_cast<std::size_t>(rows * rows));
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < rows; ++j) own[static_cast<std::size_t>(i * rows + j)] = i / neurons == j / neurons;
  return ops::multiply(ops::matmul(w2, w2.transpose(1, 2)), Tensor::from(own, {rows, rows}).to(dtype).to(w2.device()));
}

/// Ranks 0 .. E - 1 of one row's values, less their mean; equal values share their mean rank.
std::vector<double> centred_ranks(const double* values, std::size_t experts) {
  std::vector<std::size_t> order(experts);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return values[a] < values[b]; });
  std::vector<double> ranks(experts);
  for (std::size_t begin = 0, end; begin < experts; begin = end) {
    for (end = begin + 1; end < experts && values[order[end]] == values[order[begin]];) ++end;
    for (std::size_t i = begin; i < end; ++i)
      ranks[order[i]] = (static_cast<double>(begin + end) - static_cast<double>(experts)) / 2;
  }
  return ranks;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

double rank_correlation(const Tensor& prediction, const Tensor& target) {
  const auto a = prediction.to_vector<double>(), b = target.to_vector<double>();
  const auto experts = static_cast<std::size_t>(prediction.size(1));
  double sum = 0, tokens = 0;
  for (std::size_t row = 0; row < a.size(); row += experts) {
    const auto x = centred_ranks(a.data() + row, experts), y = centred_ranks(b.data() + row, experts);
    const double scale = std::sqrt(dot(x, x) * dot(y, y));
    if (scale == 0) continue;
    sum += dot(x, y) / scale;
    ++tokens;
  }
  return tokens > 0 ? sum / tokens : 0;
}

}  // namespace

// The squared norm of h W is h (W W^T) h^T: with the [S, S] matrices W W^T made once, a token costs S^2 per expert
// instead of S D.
Tensor expert_output_norms(const Tensor& rows, const ExpertWeights& weights, ops::Activation activation) {
  const Tensor gram = gram_blocks(weights, ops::compute_dtype(rows.dtype()));
  const std::int64_t blocks = gram.size(0), experts = weights.experts(), neurons = weights.expert_width();
  return per_expert(rows, weights, activation, [&](const Tensor& hidden) {
    const std::int64_t count = hidden.size(0);
    const Tensor h = hidden.view({count, blocks, gram.size(1)}).transpose(0, 1);  // [blocks, n, neurons of a block]
    const Tensor products = ops::multiply(ops::matmul(h, gram), h).view({blocks, count, experts / blocks, neurons});
    const Tensor squares = ops::sum(products, {-1}).transpose(0, 1).reshape({count, experts});
    return ops::unary(Unary::sqrt, ops::unary(Unary::relu, squares));  // rounding may leave a zero below zero
  });
}

Tensor expert_activation_shares(const Tensor& rows, const ExpertWeights& weights, ops::Activation activation) {
  const Tensor mass = per_expert(rows, weights, activation,
                                 [](const Tensor& hidden) { return ops::sum(ops::unary(Unary::abs, hidden), {-1}); });
  const Tensor total = ops::sum(mass, {-1}, true), zero = Tensor::scalar(0, mass.dtype(), mass.device());
  return ops::where(ops::binary(ops::Binary::less_equal, total, zero), zero, ops::divide(mass, total));
}

Variable router_loss(RouterLoss loss, const Variable& prediction, const Tensor& target) {
  check(prediction.shape() == target.shape() && prediction.dtype() == target.dtype(), "router_loss: prediction is ",
        prediction.dtype(), " ", prediction.shape(), ", target ", target.dtype(), " ", target.shape());
  const Variable fixed(target);
  // -t log(sigmoid(z)) - (1 - t) log(1 - sigmoid(z)) = softplus(z) - t z
  if (loss == RouterLoss::binary_cross_entropy) return mean(unary(Unary::softplus, prediction) - fixed * prediction);
  const Variable difference = prediction - fixed;
  const Variable square = unary(Unary::square, difference);
  if (loss == RouterLoss::mse) return mean(square);
  const Variable distance = unary(Unary::abs, difference);
  const Tensor one = Tensor::scalar(1, target.dtype(), target.device());
  const Tensor near = ops::binary(ops::Binary::less_equal, distance.data(), one);
  return mean(where(near, square * 0.5, distance + -0.5));
}

RouterQuality router_quality(const Tensor& prediction, const Tensor& target, std::int64_t k) {
  check(prediction.rank() == 2 && prediction.shape() == target.shape() && prediction.numel() > 0,
        "router_quality: prediction ", prediction.shape(), " and target ", target.shape(), " must be the same [N, E]");
  const ops::Gate best = {ops::GateMode::topk, k};
  const Tensor both =
      ops::binary(ops::Binary::logical_and, ops::expert_mask(prediction, best), ops::expert_mask(target, best));
  const double wanted = static_cast<double>(prediction.size(0) * k);
  return {rank_correlation(prediction, target), static_cast<double>(ops::sum(both).item<std::int64_t>()) / wanted};
}

}  // namespace switchyard::moe
