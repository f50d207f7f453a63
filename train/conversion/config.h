#pragma once

#include "moe/conversion/projection.h"
#include "moe/conversion/router_tutor.h"
#include "moe/conversion/sparsity.h"
#include "train/config_sections.h"
#include "train/conversion/sweep.h"

/// The configuration of a conversion to dynamic-k experts: one struct per section of the JSON file; member initialisers
/// are the defaults. What each key means and allows is declared in describe(), in config.cpp.
namespace switchyard::train {

/// The phases of a conversion, in their order.
enum class PhaseKind : std::uint8_t { projections, sparsify, experts, routers, adapt };
/// How the weight of the sparsity penalty goes over the steps.
enum class WeightSchedule : std::uint8_t { constant, linear };
/// Routers of D2DMoE, which predict the norm of each expert's output, or of MoEfication, which predict each expert's
/// share of the activations.
enum class RouterKind : std::uint8_t { norm, moefication };
enum class RegressionLoss : std::uint8_t { mse, huber };

constexpr auto names_of(PhaseKind) {
  return std::array<std::string_view, 5>{"projections", "sparsify", "experts", "routers", "adapt"};
}
constexpr auto names_of(WeightSchedule) { return std::array<std::string_view, 2>{"constant", "linear"}; }
constexpr auto names_of(RouterKind) { return std::array<std::string_view, 2>{"norm", "moefication"}; }
constexpr auto names_of(RegressionLoss) { return std::array<std::string_view, 2>{"mse", "huber"}; }

/// What all phases share.
struct ConversionTrainingConfig {
  std::int64_t batch = 0;
  std::int64_t seed = 1;
  double clip = 1.0;
  std::int64_t log_every = 50;
  std::int64_t checkpoint_every = 250;
};

struct ProjectionsConfig {
  std::int64_t steps = 1000;
  std::vector<nn::ProjectionKind> kinds{nn::kProjectionKinds.begin(), nn::kProjectionKinds.end()};
  double flops_factor = 1;
  ops::Activation activation = ops::Activation::relu;
  bool residual = false;
  std::int64_t expert_width = 8;
  std::int64_t router_hidden = 32;
  OptimizerConfig optimizer = {.learning_rate = 5e-3, .weight_decay = 0, .schedule = {}};
};

struct SparsifyConfig {
  std::int64_t steps = 1000;
  moe::SparsityMeasure measure = moe::SparsityMeasure::square_hoyer;
  double weight = 1e-3;
  double projections_weight = 1e-3;
  WeightSchedule schedule = WeightSchedule::linear;
  double displacement = -10;
  bool swap_to_relu = false;
  OptimizerConfig optimizer;
};

struct ExpertsConfig {
  std::int64_t expert_width = 24;
  std::int64_t restarts = 1;
};

struct RoutersConfig {
  std::int64_t steps = 1000;
  RouterKind kind = RouterKind::norm;
  std::int64_t hidden = 128;
  std::int64_t tokens = 4096;
  RegressionLoss loss = RegressionLoss::mse;
  OptimizerConfig optimizer = {.learning_rate = 1e-3, .weight_decay = 0, .schedule = {}};
};

struct AdaptConfig {
  std::int64_t steps = 1000;
  std::vector<double> taus = {0.7, 0.8, 0.9, 0.95};
  OptimizerConfig optimizer;
};

struct ConversionConfig {
  std::string model;  ///< folder of the run, or of another conversion, that is converted
  std::vector<PhaseKind> phases = {PhaseKind::sparsify, PhaseKind::experts, PhaseKind::routers};
  ConversionTrainingConfig training;
  ProjectionsConfig projections;
  SparsifyConfig sparsify;
  ExpertsConfig experts;
  RoutersConfig routers;
  AdaptConfig adapt;
  SweepConfig sweep;

  bool has(PhaseKind phase) const;
};

/// The table of every key, bound to `config` (which must outlive it).
Schema describe(ConversionConfig& config);

/// Throws Error for values that do not fit together; the schema has checked each by itself.
void validate(const ConversionConfig& config);

}  // namespace switchyard::train
