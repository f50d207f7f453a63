#include "moe/conversion/split.h"

#include <algorithm>

#include "core/ops/index.h"
#include "moe/conversion/clustering.h"

namespace switchyard::moe {
namespace {

void check_matrix(const char* name, const Tensor& matrix, const Tensor& bias, const Shape& shape, std::int64_t rows) {
  check(matrix.defined() && matrix.shape() == shape, "split_into_experts: ", name, " must be ", shape, ", got ",
        matrix.defined() ? matrix.shape() : Shape{});
  check(!bias.defined() || bias.shape() == Shape{rows}, "split_into_experts: the bias of ", name, " must be [", rows,
        "], got ", bias.defined() ? bias.shape() : Shape{});
}

void check_weights(const DenseWeights& dense) {
  check(dense.up.defined() && dense.up.rank() == 2 && dense.down.defined() && dense.down.rank() == 2,
        "split_into_experts: a feed-forward needs the matrices up [F, D] and down [output width, F]");
  const std::int64_t neurons = dense.up.size(0), width = dense.up.size(1), outputs = dense.down.size(0);
  check_matrix("up", dense.up, dense.up_bias, {neurons, width}, neurons);
  check_matrix("down", dense.down, dense.down_bias, {outputs, neurons}, outputs);
  if (dense.gate.defined()) check_matrix("gate", dense.gate, dense.gate_bias, {neurons, width}, neurons);
  else check(!dense.gate_bias.defined(), "split_into_experts: a gate bias without a gate");
}

/// The neurons, expert after expert, ascending within each: i64 [F] on `device`.
Tensor neurons_by_expert(const Tensor& labels, std::int64_t neurons, std::int64_t experts, Device device) {
  check(experts >= 1 && neurons % experts == 0, "split_into_experts: ", neurons, " neurons do not divide into ",
        experts, " experts of equal size");
  check(labels.defined() && labels.dtype() == DType::i64 && labels.shape() == Shape{neurons},
        "split_into_experts: labels must be i64 [", neurons, "]");
  const std::vector<std::int64_t> label = labels.to_vector<std::int64_t>();
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(experts), 0), order(label.size());
  for (std::size_t n = 0; n < label.size(); ++n) {
    check(label[n] >= 0 && label[n] < experts, "split_into_experts: neuron ", n, " has label ", label[n],
          ", expected 0..", experts - 1);
    ++sizes[static_cast<std::size_t>(label[n])];
    order[n] = static_cast<std::int64_t>(n);
  }
  for (std::size_t e = 0; e < sizes.size(); ++e)
    check(sizes[e] == neurons / experts, "split_into_experts: expert ", e, " has ", sizes[e], " neurons, expected ",
          neurons / experts);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return label[static_cast<std::size_t>(a)] < label[static_cast<std::size_t>(b)];
  });
  return Tensor::from(order, {neurons}).to(device);
}

}  // namespace

DenseWeights weights_of(const nn::FeedForward& layer) {
  DenseWeights dense = {layer.up().weight().data(),
                        data_or_none(layer.up().bias()),
                        {},
                        {},
                        layer.down().weight().data(),
                        data_or_none(layer.down().bias()),
                        layer.residual()};
  if (const nn::Linear* gate = layer.gate()) {
    dense.gate = gate->weight().data();
    dense.gate_bias = data_or_none(gate->bias());
  }
  return dense;
}

Tensor neuron_features(const DenseWeights& dense) {
  return rows_of_unit_length(dense.gate.defined() ? dense.gate : dense.up);
}

ExpertWeights split_into_experts(const DenseWeights& dense, const Tensor& labels, std::int64_t experts) {
  check_weights(dense);
  const std::int64_t neurons = dense.up.size(0);
  const Tensor order = neurons_by_expert(labels, neurons, experts, dense.up.device());
  // A tensor with one row per neuron -> [E, S, columns].
  const auto grouped = [&](const Tensor& rows) {
    return ops::embedding(rows, order).view({experts, neurons / experts, rows.size(1)});
  };
  const auto columns = [&](const Tensor& matrix) {
    return matrix.defined() ? grouped(matrix).transpose(1, 2) : Tensor{};
  };
  const auto biases = [&](const Tensor& bias) {
    return bias.defined() ? grouped(bias.unsqueeze(1)).squeeze(2) : Tensor{};
  };
  return {{columns(dense.up), biases(dense.up_bias), columns(dense.gate), biases(dense.gate_bias),
           grouped(dense.down.transpose(0, 1))},
          dense.down_bias.defined() ? dense.down_bias.clone() : Tensor{},
          dense.residual};
}

}  // namespace switchyard::moe
