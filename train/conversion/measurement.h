#pragma once

#include <optional>
#include <string>
#include <vector>

#include "moe/conversion/cost.h"
#include "train/task.h"

namespace switchyard::train {

/// What one converted layer did with the validation data.
struct LayerMeasurement {
  double macs_per_token = 0;
  moe::DynamicSummary experts;
};

/// How good a model is and what it costs.
struct Measurement {
  Score score;
  double macs_per_token = 0;                        ///< multiply-adds of all moe::convertible_layers, as they are now
  double dense_macs_per_token = 0;                  ///< of the same layers before conversion
  std::optional<double> seconds_per_token;          ///< in batches
  std::optional<double> seconds_per_decoded_token;  ///< one after the other; none for models that do not generate
  std::vector<LayerMeasurement> layers;             ///< the converted ones, in the model's order

  double share_of_dense() const { return macs_per_token / dense_macs_per_token; }
};

struct MeasurementOptions {
  /// Above 0 the score is the mean loss of as many training batches instead, the same at every call while the task's
  /// place in its training data is the same: for choosing settings that the validation data then judges.
  std::int64_t training_batches = 0;
  std::int64_t repeats = 5;  ///< timed passes, whose median counts; 0 takes no times
  std::int64_t decoded_tokens = 64;
};

/// Evaluates the task's model, dense or converted, with the gates that are set, counts the experts run and takes times.
/// On a GPU a pass is recorded as a graph and replayed, so that the host's work does not count. Throws Error for a
/// model without layers that could be converted.
Measurement measure(Task& task, const MeasurementOptions& options);

/// Median time of one run of the pass, read back, over its tokens. Two runs come before, to warm up.
double seconds_per_token(const Pass& pass, std::int64_t repeats, Device device);

}  // namespace switchyard::train
