#include "moe/conversion/clustering.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "core/ops/elementwise.h"
#include "moe/conversion/balanced_assignment.h"
#include "tests/moe/conversion/min_cost_flow.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::random_tensor;

double cost_of(const std::vector<std::int32_t>& groups, const Tensor& costs) {
  double total = 0;
  for (std::size_t row = 0; row < groups.size(); ++row)
    total += costs.data<double>()[static_cast<std::int64_t>(row) * costs.size(1) + groups[row]];
  return total;
}

/// Every label exactly as often as the others.
template <class T>
void expect_balanced(const std::vector<T>& labels, std::int64_t groups) {
  std::vector<std::size_t> sizes(static_cast<std::size_t>(groups), 0);
  for (const T label : labels) ++sizes.at(static_cast<std::size_t>(label));
  for (const std::size_t size : sizes) EXPECT_EQ(size, labels.size() / sizes.size());
}

/// Rows around `blobs` random points, of unit length.
Tensor blobs(std::int64_t rows, std::int64_t width, std::int64_t count, std::uint64_t seed, double spread) {
  const Tensor centres = random_tensor({count, width}, seed);
  Tensor all = Tensor::empty({rows, width}, DType::f64);
  for (std::int64_t i = 0; i < rows; ++i) all.select(0, i).copy_from(centres.select(0, i % count));
  ops::accumulate(all, random_tensor({rows, width}, seed + 1), spread);
  return rows_of_unit_length(all);
}

TEST(BalancedAssignment, costs_what_minimum_cost_flow_costs) {
  for (const auto& [rows, groups] : {std::pair{12, 4}, {30, 30}, {60, 3}, {64, 16}, {7, 1}}) {
    BalancedAssignment assignment(rows, groups);
    // One object for all: from the second call on it begins with the prices of other costs.
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      const Tensor costs = random_tensor({rows, groups}, seed).to(Device::cpu());
      const std::vector<std::int32_t>& labels = assignment.solve(costs);
      expect_balanced(labels, groups);
      EXPECT_NEAR(cost_of(labels, costs), cost_of(testing::min_cost_flow_assignment(costs), costs), 1e-8);
    }
  }
}

TEST(BalancedAssignment, equal_costs_and_bad_ones) {
  BalancedAssignment assignment(12, 4);
  expect_balanced(assignment.solve(Tensor::zeros({12, 4}, DType::f64, Device::cpu())), 4);
  EXPECT_ERROR(assignment.solve(Tensor::full({12, 4}, NAN, DType::f64, Device::cpu())), "costs must be finite");
  EXPECT_ERROR(assignment.solve(Tensor::zeros({4, 12}, DType::f64, Device::cpu())), "costs must be dense f64 [12, 4]");
  EXPECT_ERROR(BalancedAssignment(12, 5), "BalancedAssignment: 12 rows do not divide into 5 groups");
}

/// Constrained k-means whose assignments are minimum-cost flows.
double flow_k_means(const Tensor& rows, Tensor centres) {
  double best = std::numeric_limits<double>::infinity();
  while (true) {
    const Tensor costs = testing::squared_distances(rows, centres);
    const std::vector<std::int32_t> labels = testing::min_cost_flow_assignment(costs);
    centres = testing::means(rows, labels, centres.size(0));
    const double objective = testing::k_means_objective(rows, labels, centres.size(0));
    if (objective > best - 1e-9) return best;
    best = objective;
  }
}

TEST(BalancedKMeans, is_no_worse_than_minimum_cost_flow_from_the_same_centres) {
  struct Case {
    Tensor rows;
    std::int64_t clusters;
  };
  const std::vector<Case> cases = {{rows_of_unit_length(random_tensor({96, 12}, 1)), 8},
                                   {rows_of_unit_length(random_tensor({96, 12}, 2)), 24},
                                   {blobs(90, 16, 7, 3, 0.3), 10},   // blobs that do not fit the sizes
                                   {blobs(120, 5, 40, 5, 0.1), 60},  // pairs
                                   {blobs(64, 8, 4, 7, 0.5), 4}};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    const Tensor rows = cases[i].rows.to(Device::cpu());
    const Tensor centres = rows.slice(0, 0, cases[i].clusters);
    const double reference = flow_k_means(rows, centres);
    const Clustering rounds = balanced_k_means_from(rows, centres, false);
    const Clustering found = balanced_k_means_from(rows, centres);
    EXPECT_LE(rounds.objective, reference * (1 + 1e-9));
    EXPECT_LE(found.objective, rounds.objective);
    for (const Clustering& result : {rounds, found}) {
      const auto labels = result.labels.to_vector<std::int32_t>();
      expect_balanced(labels, cases[i].clusters);
      EXPECT_NEAR(result.objective, testing::k_means_objective(rows, labels, cases[i].clusters), 1e-9);
    }
  }
}

TEST(BalancedKMeans, no_exchange_of_two_rows_lowers_the_objective) {
  const Tensor rows = rows_of_unit_length(random_tensor({24, 6}, 8)).to(Device::cpu());
  for (const std::int64_t clusters : {3, 8, 12}) {
    Generator generator(1);
    const Clustering found = balanced_k_means(rows, clusters, generator, {.restarts = 1});
    auto labels = found.labels.to_vector<std::int32_t>();
    for (std::size_t p = 0; p < labels.size(); ++p)
      for (std::size_t q = 0; q < p; ++q) {
        std::swap(labels[p], labels[q]);
        EXPECT_GE(testing::k_means_objective(rows, labels, clusters), found.objective - 1e-9);
        std::swap(labels[p], labels[q]);
      }
  }
}

TEST(BalancedKMeans, more_starts_do_no_harm) {
  const Tensor rows = random_tensor({60, 6}, 8);
  double before = std::numeric_limits<double>::infinity();
  for (const std::int64_t restarts : {1, 2, 4, 8}) {
    Generator generator(1);
    const Clustering found = balanced_k_means(rows, 12, generator, {.restarts = restarts});
    EXPECT_LE(found.objective, before);
    before = found.objective;
  }
}

TEST(BalancedKMeans, finds_clusters_that_are_far_apart) {
  const Tensor rows = blobs(60, 20, 6, 11, 0.01);
  Generator generator(1);
  const Clustering found = balanced_k_means(rows, 6, generator);
  const auto labels = found.labels.to_vector<std::int64_t>();
  for (std::size_t i = 6; i < labels.size(); ++i) EXPECT_EQ(labels[i], labels[i - 6]);
  EXPECT_EQ(std::set<std::int64_t>(labels.begin(), labels.end()).size(), 6U);
}

TEST(BalancedKMeans, the_same_generator_gives_the_same_labels) {
  const Tensor rows = rows_of_unit_length(random_tensor({128, 16}, 4, DType::f32));
  const auto labels = [&](std::uint64_t seed) {
    Generator generator(seed);
    return balanced_k_means(rows, 32, generator).labels.to_vector<std::int64_t>();
  };
  EXPECT_EQ(labels(3), labels(3));
  EXPECT_NE(labels(3), labels(4));
}

TEST(BalancedKMeans, extreme_counts_and_equal_rows) {
  const Tensor rows = random_tensor({12, 5}, 9);
  Generator generator(1);
  EXPECT_NEAR(balanced_k_means(rows, 12, generator).objective, 0, 1e-12);
  EXPECT_EQ(balanced_k_means(rows, 1, generator).labels.to_vector<int>(), std::vector<int>(12, 0));
  const Clustering equal = balanced_k_means(Tensor::ones({12, 5}), 4, generator);
  EXPECT_NEAR(equal.objective, 0, 1e-12);
  expect_balanced(equal.labels.to_vector<int>(), 4);
}

TEST(BalancedKMeans, bad_input_is_named) {
  Generator generator(1);
  const Tensor rows = random_tensor({12, 5}, 9);
  EXPECT_ERROR(balanced_k_means(rows, 5, generator), "balanced_k_means: 12 rows do not divide into 5 clusters");
  EXPECT_ERROR(balanced_k_means(rows, 0, generator), "12 rows do not divide into 0 clusters");
  EXPECT_ERROR(balanced_k_means(rows, 24, generator), "12 rows do not divide into 24 clusters");
  EXPECT_ERROR(balanced_k_means(rows.select(0, 0), 1, generator), "rows must be floating [n, d]");
  EXPECT_ERROR(balanced_k_means(rows, 4, generator, {.restarts = 0}),
               "balanced_k_means: 0 restarts, expected at least 1");
  EXPECT_ERROR(balanced_k_means_from(rows, random_tensor({4, 6}, 1)), "centres must be [clusters, 5], got [4, 6]");
  const Tensor bad = rows.clone();
  testing::set_element(bad, {3, 2}, NAN);
  testing::set_element(bad, {3, 3}, INFINITY);
  EXPECT_ERROR(balanced_k_means(bad, 4, generator), "rows have 2 elements that are NaN or infinite");
}

TEST(RowsOfUnitLength, rows_of_zeros_stay) {
  const Tensor rows = Tensor::from<float>({3, 4, 0, 0, 0, -2}, {3, 2});
  EXPECT_CLOSE(rows_of_unit_length(rows), Tensor::from<double>({0.6, 0.8, 0, 0, 0, -1}, {3, 2}), 1e-7);
}

}  // namespace
}  // namespace switchyard::moe
