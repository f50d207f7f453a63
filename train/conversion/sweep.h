#pragma once

#include <boost/json/object.hpp>
#include <functional>
#include <string>
#include <vector>

#include "train/conversion/measurement.h"
#include "train/schema.h"

namespace switchyard::train {

/// At which settings of its gates a converted model is measured; see core/ops/gate.h. An empty list leaves that rule
/// out.
struct SweepConfig {
  std::vector<double> dynk_max = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0};  ///< tau
  std::vector<double> dynk;                                                                       ///< tau
  std::vector<double> topk = {0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0};  ///< k as a share of the layer's experts
  /// Also chooses a tau for each layer by itself, out of the list dynk_max: see layer_taus().
  bool tau_by_layer = false;
  double map_share = 0.3;  ///< of the experts that tokens run in the compute map, as near as a setting comes
  MeasurementOptions measurement;
};

/// Declares section `sweep`.
void describe_sweep(Schema& schema, SweepConfig& config);

/// For each of several budgets the taus of the converted layers, gate dynk_max, chosen among `taus` by a simple model:
/// that the loss rises by the sum of what it rises by when one layer alone is set and the others run all experts. That
/// takes an evaluation for each layer and tau, on training batches: the validation data judges the choice. Budgets come
/// from prices of a multiply-add, spread evenly in their logarithm; each layer takes the tau of the least rise plus
/// price. From the dearest price, so the cheapest model, on; equal choices appear once.
std::vector<std::vector<double>> layer_taus(Task& task, const std::vector<double>& taus);

/// Measures the task's converted model at every setting and puts its gates back. `dense` is the measurement of the
/// model before conversion. `report` gets a line for each setting. Throws Error for a model without converted layers.
/// Returns
///
///   {"kind": "sweep",
///    "dense": {"loss", "accuracy", "macs_per_token", "share_of_dense", "seconds_per_token",
///              "seconds_per_decoded_token"},
///    "layers": [{"name", "experts", "expert_width", "dense_macs", "macs_without_experts", "macs_per_expert"}, ...],
///    "curves": [{"method", "setting",
///                "points": [{"value", ... as in "dense" ...,
///                            "layers": [{"value", "macs_per_token", "mean_experts", "histogram"}, ...]}, ...]}, ...]}
///
/// "method" is the gate's rule, "dynk_max_by_layer" for layer_taus(); methods that other programs add, such as early
/// exit, leave "layers" out of their points. "setting" says what a "value" is ("tau", "mean tau", "k / experts");
/// a layer has one of its own where they differ. Multiply-adds ("macs") are those of Measurement. "accuracy" is there
/// for classifiers, times where they were taken. "histogram"[n] counts the tokens that ran n experts.
boost::json::object sweep(Task& task, const SweepConfig& config, const Measurement& dense,
                          const std::function<void(const std::string&)>& report);

/// Sets the gates of the model that `sweep` was made of to the setting of its first curve at which the tokens ran, on
/// average, nearest to `share` of the experts.
void set_gates_near(nn::Module& model, const boost::json::object& sweep, double share);

}  // namespace switchyard::train
