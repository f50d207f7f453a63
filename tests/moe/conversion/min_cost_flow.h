#pragma once

#include <boost/graph/adjacency_list.hpp>
#include <boost/graph/successive_shortest_path_nonnegative_weights.hpp>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/tensor.h"

/// Constrained k-means by another way than the library's: assignments as minimum-cost flows (Boost.Graph), distances
/// and means by plain loops. All tensors f64, dense, on the CPU.
namespace switchyard::testing {

using FlowTraits = boost::adjacency_list_traits<boost::vecS, boost::vecS, boost::directedS>;
using FlowGraph = boost::adjacency_list<
    boost::vecS, boost::vecS, boost::directedS, boost::no_property,
    boost::property<boost::edge_capacity_t, std::int64_t,
                    boost::property<boost::edge_residual_capacity_t, std::int64_t,
                                    boost::property<boost::edge_reverse_t, FlowTraits::edge_descriptor,
                                                    boost::property<boost::edge_weight_t, std::int64_t>>>>>;

inline FlowTraits::edge_descriptor add_flow_edge(FlowGraph& graph, std::int64_t from, std::int64_t to,
                                                 std::int64_t capacity, std::int64_t weight) {
  const auto forward = boost::add_edge(static_cast<std::size_t>(from), static_cast<std::size_t>(to), graph).first;
  const auto back = boost::add_edge(static_cast<std::size_t>(to), static_cast<std::size_t>(from), graph).first;
  boost::put(boost::edge_capacity, graph, forward, capacity);
  boost::put(boost::edge_capacity, graph, back, 0);
  boost::put(boost::edge_weight, graph, forward, weight);
  boost::put(boost::edge_weight, graph, back, -weight);
  boost::put(boost::edge_reverse, graph, forward, back);
  boost::put(boost::edge_reverse, graph, back, forward);
  return forward;
}

/// The cheapest assignment of rows to groups of equal size. Costs above -1000 are rounded to multiples of 2^-40.
inline std::vector<std::int32_t> min_cost_flow_assignment(const Tensor& costs) {
  const std::int64_t rows = costs.size(0), groups = costs.size(1), source = rows + groups, sink = source + 1;
  FlowGraph graph(static_cast<std::size_t>(sink + 1));
  std::vector<FlowTraits::edge_descriptor> choices;
  for (std::int64_t row = 0; row < rows; ++row) {
    add_flow_edge(graph, source, row, 1, 0);
    for (std::int64_t group = 0; group < groups; ++group) {
      const double cost = costs.data<double>()[row * groups + group] + 1000;  // weights must not be negative
      choices.push_back(add_flow_edge(graph, row, rows + group, 1, std::llround(std::ldexp(cost, 40))));
    }
  }
  for (std::int64_t group = 0; group < groups; ++group) add_flow_edge(graph, rows + group, sink, rows / groups, 0);
  boost::successive_shortest_path_nonnegative_weights(graph, static_cast<std::size_t>(source),
                                                      static_cast<std::size_t>(sink));
  std::vector<std::int32_t> labels(static_cast<std::size_t>(rows), -1);
  for (std::size_t i = 0; i < choices.size(); ++i)
    if (boost::get(boost::edge_residual_capacity, graph, choices[i]) == 0)
      labels[i / static_cast<std::size_t>(groups)] = static_cast<std::int32_t>(i % static_cast<std::size_t>(groups));
  return labels;
}

inline Tensor squared_distances(const Tensor& rows, const Tensor& centres) {
  const std::int64_t width = rows.size(1);
  const Tensor distances = Tensor::zeros({rows.size(0), centres.size(0)}, DType::f64, Device::cpu());
  for (std::int64_t i = 0; i < rows.size(0); ++i)
    for (std::int64_t c = 0; c < centres.size(0); ++c)
      for (std::int64_t j = 0; j < width; ++j) {
        const double difference = rows.data<double>()[i * width + j] - centres.data<double>()[c * width + j];
        distances.data<double>()[i * centres.size(0) + c] += difference * difference;
      }
  return distances;
}

inline Tensor means(const Tensor& rows, const std::vector<std::int32_t>& labels, std::int64_t clusters) {
  const std::int64_t width = rows.size(1);
  const double share = static_cast<double>(clusters) / static_cast<double>(rows.size(0));
  const Tensor centres = Tensor::zeros({clusters, width}, DType::f64, Device::cpu());
  for (std::int64_t i = 0; i < rows.size(0); ++i)
    for (std::int64_t j = 0; j < width; ++j)
      centres.data<double>()[labels[static_cast<std::size_t>(i)] * width + j] +=
          share * rows.data<double>()[i * width + j];
  return centres;
}

/// Sum of the squared distances of the rows to their cluster's mean.
inline double k_means_objective(const Tensor& rows, const std::vector<std::int32_t>& labels, std::int64_t clusters) {
  const Tensor distances = squared_distances(rows, means(rows, labels, clusters));
  double total = 0;
  for (std::size_t row = 0; row < labels.size(); ++row)
    total += distances.data<double>()[static_cast<std::int64_t>(row) * clusters + labels[row]];
  return total;
}

}  // namespace switchyard::testing
