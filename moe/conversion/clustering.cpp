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

using Labels = std::vector<std::int32_t>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// What is less than this share of the sum of squares of all rows is rounding, not an improvement.
constexpr double kRounding = 1e-13;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

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

/// Rows known by their inner products alone, which is all that k-means needs: with s rows a cluster and S_c their sum,
/// the objective is the sum of x x over all rows, less the sum of S_c S_c / s over all clusters.
class Clusterer {
 public:
  explicit Clusterer(const Tensor& rows) : count_(rows.size(0)), products_(ops::matmul(rows, rows.transpose(0, 1))) {
    for (std::int64_t i = 0; i < count_; ++i) total_ += square_of(i);
  }

  /// Distinct rows (where there are as many), far from each other, to begin with.
  std::vector<std::int64_t> spread_rows(std::int64_t clusters, Generator& generator) const;
  /// The run from costs [n, clusters] of the first assignment.
  Clustering run(Tensor costs, bool exchanges) const;
  /// costs[i][c] = -x_i y_c for the centres y at the given rows.
  Tensor costs_to(const std::vector<std::int64_t>& centres) const;

 private:
  const double* products_of(std::int64_t row) const { return products_.data<double>() + row * count_; }
  double square_of(std::int64_t row) const { return products_of(row)[row]; }
  Tensor products_with_sums(const Labels& labels, std::int64_t clusters) const;
  double objective(const Labels& labels, const Tensor& with_sums) const;
  std::int64_t exchange_rows(Labels& labels, std::int64_t clusters) const;
  void exchange(std::int64_t p, std::int64_t q, Labels& labels, const Tensor& with_sums,
                std::vector<double>& own) const;

  std::int64_t count_;
  Tensor products_;   // [n, n]
  double total_ = 0;  // sum of squares
};

/// The index whose stretch of the line 0 .. sum of weights holds `share` of that sum; one of weight 0 only if all are.
std::int64_t index_at_share(const std::vector<double>& weights, double share) {
  double total = 0, passed = 0;
  for (const double weight : weights) total += weight;
  std::int64_t last = 0;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(weights.size()); ++i) {
    if (weights[at(i)] <= 0) continue;
    last = i;
    passed += weights[at(i)];
    if (passed > share * total) break;
  }
  return last;
}

std::vector<std::int64_t> Clusterer::spread_rows(std::int64_t clusters, Generator& generator) const {
  const auto shares = ops::uniform({clusters}, generator.next(clusters), 0, 1, DType::f64).to_vector<double>();
  std::vector<std::int64_t> drawn;
  std::vector<double> weights(at(count_), 1);  // the first row is drawn with equal chances
  std::vector<double> distances(at(count_), kInfinity);
  for (const double share : shares) {
    const std::int64_t centre = index_at_share(weights, share);
    drawn.push_back(centre);
    for (std::int64_t i = 0; i < count_; ++i) {
      const double distance = square_of(i) + square_of(centre) - 2 * products_of(centre)[i];
      distances[at(i)] = std::clamp(distance, 0.0, distances[at(i)]);
    }
    distances[at(centre)] = 0;
    weights = distances;
  }
  return drawn;
}

Tensor Clusterer::costs_to(const std::vector<std::int64_t>& centres) const {
  const auto clusters = static_cast<std::int64_t>(centres.size());
  const Tensor costs = Tensor::empty({count_, clusters}, DType::f64, Device::cpu());
  for (std::int64_t i = 0; i < count_; ++i)
    for (std::int64_t c = 0; c < clusters; ++c)
      costs.data<double>()[i * clusters + c] = -products_of(i)[centres[at(c)]];
  return costs;
}

/// [clusters, n]: the product of each row with the sum of each cluster's rows.
Tensor Clusterer::products_with_sums(const Labels& labels, std::int64_t clusters) const {
  const Tensor result = Tensor::zeros({clusters, count_}, DType::f64, Device::cpu());
  for (std::int64_t row = 0; row < count_; ++row) {
    double* sums = result.data<double>() + labels[at(row)] * count_;
    const double* products = products_of(row);
    for (std::int64_t i = 0; i < count_; ++i) sums[i] += products[i];
  }
  return result;
}

double Clusterer::objective(const Labels& labels, const Tensor& with_sums) const {
  double explained = 0;
  for (std::int64_t i = 0; i < count_; ++i) explained += with_sums.data<double>()[labels[at(i)] * count_ + i];
  return std::max(0.0, total_ - explained * static_cast<double>(with_sums.size(0)) / static_cast<double>(count_));
}

Clustering Clusterer::run(Tensor costs, bool exchanges) const {
  const std::int64_t clusters = costs.size(1);
  BalancedAssignment assignment(count_, clusters);
  Labels best;
  double least = kInfinity;
  while (true) {
    Labels labels = assignment.solve(costs);
    Tensor with_sums = products_with_sums(labels, clusters);
    double reached = objective(labels, with_sums);
    if (!(reached < least - kRounding * total_)) {  // k-means is at its end
      if (!exchanges || exchange_rows(best, clusters) == 0) break;
      labels = best;
      with_sums = products_with_sums(labels, clusters);
      reached = objective(labels, with_sums);
    }
    least = reached;
    best = labels;
    // |x - c|^2 = |x|^2 - 2 x c + |c|^2; over all balanced assignments the sums of |x|^2 and |c|^2 are the same, so
    // that -x c is a cost as good.
    const double share = static_cast<double>(clusters) / static_cast<double>(count_);
    costs = ops::affine(with_sums.transpose(0, 1), -share).contiguous();
  }
  const std::vector<std::int64_t> labels(best.begin(), best.end());
  return {Tensor::from(labels, {count_}).to(Device::cpu()), least};
}

/// Exchanges rows of different clusters while that lowers the objective; returns how many exchanges were made.
///
/// With p of cluster a and q of b, S_a becomes S_a + q - p and S_b becomes S_b + p - q. So the sum of S S grows by
/// twice
///   gain(p, q) = (q S_a - q S_b) + (p S_b - p S_a) + p p + q q - 2 p q.
std::int64_t Clusterer::exchange_rows(Labels& labels, std::int64_t clusters) const {
  const std::int64_t size = count_ / clusters;
  std::vector<double> own(at(count_)), gains(at(count_)), with_p(at(clusters));
  std::int64_t all = 0, before = -1;
  while (all != before) {
    before = all;
    const Tensor with_sums = products_with_sums(labels, clusters);  // anew, so that rounding does not add up
    for (std::int64_t i = 0; i < count_; ++i) own[at(i)] = with_sums.data<double>()[labels[at(i)] * count_ + i];
    for (std::int64_t p = 0; p < count_; ++p) {
      const std::int64_t a = labels[at(p)];
      const double *products = products_of(p), *with_a = with_sums.data<double>() + a * count_;
      for (std::int64_t c = 0; c < clusters; ++c) with_p[at(c)] = with_sums.data<double>()[c * count_ + p];
      with_p[at(a)] = -kInfinity;  // its own cluster: no exchange
      for (std::int64_t q = 0; q < count_; ++q)
        gains[at(q)] = with_a[q] - own[at(q)] + with_p[at(labels[at(q)])] + square_of(q) - 2 * products[q];
      const auto best = std::max_element(gains.begin(), gains.end());
      const double gain = *best + square_of(p) - own[at(p)];
      if (gain <= kRounding * total_ * static_cast<double>(size)) continue;
      exchange(p, best - gains.begin(), labels, with_sums, own);
      ++all;
    }
  }
  return all;
}

/// Puts p and q into each other's cluster, and brings with_sums and own up to date.
void Clusterer::exchange(std::int64_t p, std::int64_t q, Labels& labels, const Tensor& with_sums,
                         std::vector<double>& own) const {
  const std::int32_t a = labels[at(p)], b = labels[at(q)];
  std::swap(labels[at(p)], labels[at(q)]);
  double *with_a = with_sums.data<double>() + a * count_, *with_b = with_sums.data<double>() + b * count_;
  for (std::int64_t i = 0; i < count_; ++i) {
    const double change = products_of(q)[i] - products_of(p)[i];
    with_a[i] += change;
    with_b[i] -= change;
    if (labels[at(i)] == a) own[at(i)] = with_a[i];
    if (labels[at(i)] == b) own[at(i)] = with_b[i];
  }
}

}  // namespace

Tensor rows_of_unit_length(const Tensor& rows) {
  check(rows.defined() && rows.rank() == 2 && is_floating(rows.dtype()),
        "rows_of_unit_length: rows must be floating [n, d]");
  const Tensor squares = ops::sum(ops::unary(ops::Unary::square, rows), {1}, true);
  const Tensor length = ops::unary(ops::Unary::sqrt, squares);
  const Tensor zero = Tensor::scalar(0, rows.dtype(), rows.device());
  const Tensor one = Tensor::scalar(1, rows.dtype(), rows.device());
  return ops::divide(rows, ops::where(ops::binary(ops::Binary::equal, length, zero), one, length));
}

Clustering balanced_k_means_from(const Tensor& rows, const Tensor& centres, bool exchanges) {
  const Tensor values = prepared("balanced_k_means_from", "rows", rows);
  const Tensor start = prepared("balanced_k_means_from", "centres", centres);
  check(start.size(1) == values.size(1), "balanced_k_means_from: centres must be [clusters, ", values.size(1),
        "], got ", start.shape());
  check_clusters("balanced_k_means_from", values.size(0), start.size(0));
  return Clusterer(values).run(ops::affine(ops::matmul(values, start.transpose(0, 1)), -1), exchanges);
}

Clustering balanced_k_means(const Tensor& rows, std::int64_t clusters, Generator& generator,
                            const ClusteringOptions& options) {
  check(options.restarts >= 1, "balanced_k_means: ", options.restarts, " restarts, expected at least 1");
  const Tensor values = prepared("balanced_k_means", "rows", rows);
  check_clusters("balanced_k_means", values.size(0), clusters);
  const Clusterer clusterer(values);
  Clustering best;
  for (std::int64_t i = 0; i < options.restarts; ++i) {
    const auto centres = clusterer.spread_rows(clusters, generator);
    const Clustering found = clusterer.run(clusterer.costs_to(centres), options.exchanges);
    if (!best.labels.defined() || found.objective < best.objective) best = found;
  }
  return best;
}

}  // namespace switchyard::moe
