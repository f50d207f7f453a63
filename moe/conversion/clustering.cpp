#include "moe/conversion/clustering.h"

#include <algorithm>
#include <limits>

#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/ops/random.h"
#include "core/ops/reduce.h"
#include "moe/conversion/balanced_assignment.h"

namespace switchyard::moe {
namespace {

using ops::Unary;

/// Checked, and as all steps want them: f64, dense, on the CPU.
Tensor prepared(const char* op, const char* name, const Tensor& x) {
  check(x.defined() && x.rank() == 2 && x.numel() > 0 && is_floating(x.dtype()), op, ": ", name,
        " must be floating [n, d] and not empty");
  const Tensor values = x.to(Device::cpu()).to(DType::f64).contiguous();
  const std::int64_t bad = ops::count_nonfinite(values).item<std::int64_t>();
  check(bad == 0, op, ": ", name, " have ", bad, " elements that are NaN or infinite");
  return values;
}

void check_clusters(const char* op, std::int64_t rows, std::int64_t clusters) {
  check(clusters >= 1 && rows % clusters == 0 && rows >= clusters, op, ": ", rows, " rows do not divide into ",
        clusters, " clusters of equal size");
}

/// Sum of squares of each row: [n, 1].
Tensor squared_lengths(const Tensor& rows) { return ops::sum(ops::unary(Unary::square, rows), {1}, true); }

/// The index whose stretch of the line 0 .. sum of weights holds `share` of that sum; never one of weight 0 unless all
/// are.
std::int64_t index_at_share(const double* weights, std::int64_t count, double share) {
  double total = 0, passed = 0;
  for (std::int64_t i = 0; i < count; ++i) total += weights[i];
  std::int64_t last = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (weights[i] <= 0) continue;
    last = i;
    passed += weights[i];
    if (passed > share * total) break;
  }
  return last;
}

/// Means of the clusters: [clusters, d].
Tensor means(const Tensor& rows, const std::vector<std::int32_t>& labels, std::int64_t clusters) {
  const std::int64_t width = rows.size(1);
  Tensor sums = Tensor::zeros({clusters, width}, DType::f64, Device::cpu());
  for (std::int64_t i = 0; i < rows.size(0); ++i) {
    const double* row = rows.data<double>() + i * width;
    double* sum = sums.data<double>() + labels[static_cast<std::size_t>(i)] * width;
    for (std::int64_t j = 0; j < width; ++j) sum[j] += row[j];
  }
  return ops::affine(sums, static_cast<double>(clusters) / static_cast<double>(rows.size(0)));
}

double squared_distances(const Tensor& rows, const std::vector<std::int32_t>& labels, const Tensor& centres) {
  const std::int64_t width = rows.size(1);
  double total = 0;
  for (std::int64_t i = 0; i < rows.size(0); ++i) {
    const double* row = rows.data<double>() + i * width;
    const double* centre = centres.data<double>() + labels[static_cast<std::size_t>(i)] * width;
    for (std::int64_t j = 0; j < width; ++j) total += (row[j] - centre[j]) * (row[j] - centre[j]);
  }
  return total;
}

/// The iteration; rows and centres are prepared.
Clustering iterate(const Tensor& rows, Tensor centres, std::int64_t iterations) {
  const std::int64_t clusters = centres.size(0);
  BalancedAssignment assignment(rows.size(0), clusters);
  const Tensor costs = Tensor::empty({rows.size(0), clusters}, DType::f64, Device::cpu());
  std::vector<std::int32_t> best;
  double objective = std::numeric_limits<double>::infinity();
  for (std::int64_t i = 0; i < iterations; ++i) {
    // |x - c|^2 = |x|^2 - 2 x c + |c|^2; over all balanced assignments the sums of |x|^2 and |c|^2 are the same.
    ops::matmul_into(rows, centres.transpose(0, 1), costs, -2);
    const std::vector<std::int32_t>& labels = assignment.solve(costs);
    centres = means(rows, labels, clusters);
    const double lower = squared_distances(rows, labels, centres);
    if (!(lower < objective)) break;
    objective = lower;
    best = labels;
  }
  const std::vector<std::int64_t> labels(best.begin(), best.end());
  return {Tensor::from(labels, {rows.size(0)}).to(Device::cpu()), objective};
}

}  // namespace

Tensor rows_of_unit_length(const Tensor& rows) {
  check(rows.defined() && rows.rank() == 2 && is_floating(rows.dtype()),
        "rows_of_unit_length: rows must be floating [n, d]");
  const Tensor length = ops::unary(Unary::sqrt, squared_lengths(rows));
  const Tensor zero = Tensor::scalar(0, rows.dtype(), rows.device());
  const Tensor one = Tensor::scalar(1, rows.dtype(), rows.device());
  return ops::divide(rows, ops::where(ops::binary(ops::Binary::equal, length, zero), one, length));
}

Tensor spread_centres(const Tensor& given, std::int64_t clusters, Generator& generator) {
  const Tensor rows = prepared("spread_centres", "rows", given);
  const std::int64_t count = rows.size(0);
  check_clusters("spread_centres", count, clusters);
  const std::vector<double> shares =
      ops::uniform({clusters}, generator.next(clusters), 0, 1, DType::f64).to_vector<double>();
  const Tensor lengths = squared_lengths(rows), products = Tensor::empty({count, 1}, DType::f64, Device::cpu());
  const Tensor centres = Tensor::empty({clusters, rows.size(1)}, DType::f64, Device::cpu());
  std::vector<double> distance(static_cast<std::size_t>(count), 1);  // to the nearest centre; at first all alike
  for (std::int64_t c = 0; c < clusters; ++c) {
    const std::int64_t drawn = index_at_share(distance.data(), count, shares[static_cast<std::size_t>(c)]);
    const Tensor centre = rows.slice(0, drawn, drawn + 1);
    centres.select(0, c).copy_from(centre.select(0, 0));
    ops::matmul_into(rows, centre.transpose(0, 1), products);
    const double *length = lengths.data<double>(), *product = products.data<double>();
    for (std::int64_t i = 0; i < count; ++i) {
      double& nearest = distance[static_cast<std::size_t>(i)];
      if (c == 0) nearest = std::numeric_limits<double>::infinity();
      nearest = std::clamp(length[i] + length[drawn] - 2 * product[i], 0.0, nearest);
    }
    distance[static_cast<std::size_t>(drawn)] = 0;
  }
  return centres;
}

Clustering balanced_k_means_from(const Tensor& rows, const Tensor& centres, std::int64_t iterations) {
  const Tensor values = prepared("balanced_k_means_from", "rows", rows);
  const Tensor start = prepared("balanced_k_means_from", "centres", centres);
  check(start.size(1) == values.size(1), "balanced_k_means_from: centres must be [clusters, ", values.size(1),
        "], got ", start.shape());
  check_clusters("balanced_k_means_from", values.size(0), start.size(0));
  check(iterations >= 1, "balanced_k_means_from: ", iterations, " iterations, expected at least 1");
  return iterate(values, start, iterations);
}

Clustering balanced_k_means(const Tensor& rows, std::int64_t clusters, Generator& generator,
                            const ClusteringOptions& options) {
  check(options.restarts >= 1 && options.iterations >= 1, "balanced_k_means: ", options.restarts, " restarts of ",
        options.iterations, " iterations, expected at least 1 each");
  const Tensor values = prepared("balanced_k_means", "rows", rows);
  check_clusters("balanced_k_means", values.size(0), clusters);
  Clustering best;
  for (std::int64_t i = 0; i < options.restarts; ++i) {
    const Clustering found = iterate(values, spread_centres(values, clusters, generator), options.iterations);
    if (!best.labels.defined() || found.objective < best.objective) best = found;
  }
  return best;
}

}  // namespace switchyard::moe
