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
  std::int64_t restarts = 3;      ///< starts; the best result is kept
  std::int64_t iterations = 100;  ///< most rounds of one start
};

/// Balanced k-means: groups the rows (floating [n, d]) into clusters of exactly n / clusters rows, close to the least
/// objective. Each start spreads its centres (see spread_centres), then repeats two steps that both lower the
/// objective, until neither does: the best assignment to the centres under the size constraint, and centres at the
/// means. Computed in f64 on the CPU wherever the rows are; the same rows and generator give the same labels. Throws
/// Error for a number of clusters that does not divide n, and for rows with NaN or infinity.
Clustering balanced_k_means(const Tensor& rows, std::int64_t clusters, Generator& generator,
                            const ClusteringOptions& options = {});

// --- The parts of it ------------------------------------------------------------------------------------------------

/// First centres, by k-means++ (Arthur & Vassilvitskii, 2007): rows drawn one after the other, with probability in
/// proportion to the squared distance to the nearest one drawn before. f64 [clusters, d] on the CPU.
Tensor spread_centres(const Tensor& rows, std::int64_t clusters, Generator& generator);

/// The iteration from given centres [clusters, d].
Clustering balanced_k_means_from(const Tensor& rows, const Tensor& centres, std::int64_t iterations);

}  // namespace switchyard::moe
