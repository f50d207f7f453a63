#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "nn/module.h"
#include "nn/transformer.h"
#include "tests/support/tensors.h"

namespace switchyard::nn {

/// Makes a module's parameters f64 and random, norms and biases too.
inline void randomize(Module& module, std::uint64_t seed) {
  module.to(DType::f64);
  for (const Variable& p : module.parameters())
    p.set_data(testing::random_tensor(p.shape(), seed++, DType::f64, -0.7, 0.7));
}

/// Expects a module's parameters to be `single` and, for each of `layers` and each layer of block 0, a weight and a
/// bias.
inline void expect_parameter_names(const Module& module, std::vector<std::string> single,
                                   std::vector<std::string> layers) {
  for (const char* layer : {"attention_norm", "attention.query", "attention.key", "attention.value", "attention.output",
                            "feed_forward_norm", "feed_forward.up", "feed_forward.down"})
    layers.push_back(std::string("layers.0.") + layer);
  for (const std::string& layer : layers)
    for (const char* part : {".weight", ".bias"}) single.push_back(layer + part);
  std::vector<std::string> names;
  for (const NamedParameter& p : module.named_parameters()) names.push_back(p.name);
  std::sort(names.begin(), names.end());
  std::sort(single.begin(), single.end());
  EXPECT_EQ(names, single);
}

/// The formulas of encoders in plain loops over one text: what the modules are compared with. Parameters are found by
/// their names.
class NaiveEncoder {
 public:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;

  NaiveEncoder(const Module& module, std::size_t heads, double epsilon) : heads_(heads), epsilon_(epsilon) {
    for (const NamedParameter& p : module.named_parameters()) parameters_[p.name] = rows_of(p.variable.data());
  }

  /// A tensor [..., d] as rows.
  static Rows rows_of(const Tensor& x) {
    const auto values = x.to_vector<double>();
    const auto width = x.size(-1);
    Rows rows;
    for (auto from = values.begin(); from != values.end(); from += width) rows.emplace_back(from, from + width);
    return rows;
  }

  static Rows add(const Rows& a, const Rows& b) {
    Rows sum = a;
    for (std::size_t i = 0; i < a.size(); ++i)
      for (std::size_t c = 0; c < a[i].size(); ++c) sum[i][c] += b[i][c];
    return sum;
  }

  const Rows& parameter(const std::string& name) const { return parameters_.at(name); }

  Rows linear(const std::string& name, const Rows& x) const {
    const Rows &weight = parameter(name + ".weight"), &bias = parameter(name + ".bias");
    Rows y(x.size(), bias[0]);
    for (std::size_t i = 0; i < x.size(); ++i)
      for (std::size_t o = 0; o < weight.size(); ++o)
        for (std::size_t c = 0; c < x[i].size(); ++c) y[i][o] += weight[o][c] * x[i][c];
    return y;
  }

  Rows norm(const std::string& name, const Rows& x) const {
    Rows y = x;
    for (Row& row : y) {
      const auto width = static_cast<double>(row.size());
      double mean = 0, variance = 0;
      for (const double v : row) mean += v / width;
      for (const double v : row) variance += (v - mean) * (v - mean) / width;
      for (std::size_t c = 0; c < row.size(); ++c)
        row[c] = (row[c] - mean) / std::sqrt(variance + epsilon_) * parameter(name + ".weight")[0][c] +
                 parameter(name + ".bias")[0][c];
    }
    return y;
  }

  Rows attention(const std::string& name, const Rows& x, const std::vector<bool>& hidden) const {
    const Rows q = linear(name + ".query", x), k = linear(name + ".key", x), v = linear(name + ".value", x);
    const std::size_t width = q[0].size() / heads_;
    Rows mixed(x.size(), Row(q[0].size(), 0.0));
    for (std::size_t h = 0; h < heads_; ++h)
      for (std::size_t i = 0; i < x.size(); ++i) {
        Row weight(x.size(), 0.0);
        double total = 0;
        for (std::size_t j = 0; j < x.size(); ++j) {
          if (hidden[j]) continue;
          double logit = 0;
          for (std::size_t c = h * width; c < (h + 1) * width; ++c) logit += q[i][c] * k[j][c];
          total += weight[j] = std::exp(logit / std::sqrt(static_cast<double>(width)));
        }
        for (std::size_t j = 0; j < x.size(); ++j)
          for (std::size_t c = h * width; c < (h + 1) * width; ++c) mixed[i][c] += weight[j] / total * v[j][c];
      }
    return linear(name + ".output", mixed);
  }

  Rows feed_forward(const std::string& name, const Rows& x) const {
    Rows neurons = linear(name + ".up", x);
    for (Row& row : neurons)
      for (double& v : row) v = v * (1 + std::erf(v / std::sqrt(2.0))) / 2;  // gelu
    return linear(name + ".down", neurons);
  }

  Rows block(const std::string& name, Rows x, NormPlacement placement, const std::vector<bool>& hidden) const {
    const std::string a = name + ".attention", f = name + ".feed_forward";
    if (placement == NormPlacement::pre) {
      x = add(x, attention(a, norm(a + "_norm", x), hidden));
      return add(x, feed_forward(f, norm(f + "_norm", x)));
    }
    x = norm(a + "_norm", add(x, attention(a, x, hidden)));
    return norm(f + "_norm", add(x, feed_forward(f, x)));
  }

 private:
  std::map<std::string, Rows> parameters_;
  std::size_t heads_;
  double epsilon_;
};

}  // namespace switchyard::nn
