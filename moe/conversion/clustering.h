#pragma once

#include "core/rng.h"
#include "core/tensor.h"

namespace switchyard::moe {

/// rows [n, d] with each row scaled to length 1; a row of zeros stays 0.
Tensor rows_of_unit_length(const Tensor& rows);

struct Clustering {
  Tensor labels;         ///< i64 [n], each of 0..clusters-1 exactly n / clusters times; on the CPU
  double objective = 0;  ///< sum over the rows of the squared distance to their cluster's mean
};

struct ClusteringOptions {
  std::int64_t restarts = 3;  ///< starts; the best result is kept
  bool exchanges = true;      ///< false: only the rounds of k-means
};

/// Balanced k-means: groups the rows (floating [n, d]) into clusters of exactly n / clusters rows, close to the least
/// objective. Each start draws spread-out rows as centres (k-means++: Arthur & Vassilvitskii, 2007) and goes on as
/// balanced_k_means_from. Computed in f64 on the CPU wherever the rows are, from the products of all pairs of rows: 8
/// n^2 bytes. The same rows, generator and number of threads give the same labels.
/// Throws Error for a number of clusters that does not divide n, and for rows with NaN or infinity.
Clustering balanced_k_means(const Tensor& rows, std::int64_t clusters, Generator& generator,
                            const ClusteringOptions& options = {});

/// One run from given centres [clusters, d]: rounds of k-means, whose assignments are the best ones under the size
/// constraint (see BalancedAssignment), until they no longer lower the objective; then exchanges of two rows between
/// two clusters, judged by the objective itself, means included; and so on until neither helps. Exchanges matter for
/// small clusters: there a row draws the mean so far towards itself that it never leaves its cluster in a round of
/// k-means.
Clustering balanced_k_means_from(const Tensor& rows, const Tensor& centres, bool exchanges = true);

}  // namespace switchyard::moe
