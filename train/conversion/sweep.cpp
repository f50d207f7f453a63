#include "train/conversion/sweep.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <cmath>
#include <cstdio>
#include <limits>

#include "moe/conversion/convert.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;
using moe::Gate;
using moe::GateMode;

/// One setting of the gates of all converted layers.
struct Setting {
  double value = 0;          ///< what the point is called by: tau, or the share of experts
  std::vector<Gate> gates;   ///< of each layer
  std::vector<double> taus;  ///< of each layer, where they have one of their own
};

/// Settings that belong together.
struct Curve {
  std::string method, setting;
  std::vector<Setting> settings;
};

using Layers = std::vector<moe::DynamicFeedForward*>;

constexpr std::int64_t kTrainingBatches = 8;  // that a tau for each layer is chosen by

void set_gates(const Layers& layers, const std::vector<Gate>& gates) {
  for (std::size_t i = 0; i < layers.size(); ++i) layers[i]->set_gate(gates[i]);
}

/// The converted layers of a model, whose gates are put back at the end.
class KeptGates {
 public:
  explicit KeptGates(nn::Module& model) : layers_(moe::converted_layers(model)) {
    check(!layers_.empty(), "sweep: the model has no converted layers");
    for (const moe::DynamicFeedForward* layer : layers_) before_.push_back(layer->gate());
  }
  ~KeptGates() { set_gates(layers_, before_); }
  KeptGates(const KeptGates&) = delete;
  KeptGates& operator=(const KeptGates&) = delete;

  const Layers& layers() const { return layers_; }

 private:
  Layers layers_;
  std::vector<Gate> before_;
};

Curve curve_by_tau(GateMode mode, const std::vector<double>& taus, const Layers& layers) {
  Curve curve{std::string(name_of(mode)), "tau", {}};
  for (const double tau : taus) curve.settings.push_back({tau, std::vector<Gate>(layers.size(), {mode, 1, tau}), {}});
  return curve;
}

Curve curve_by_k(const std::vector<double>& shares, const Layers& layers) {
  Curve curve{"topk", "k / experts", {}};
  for (const double share : shares) {
    Setting setting{share, {}, {}};
    for (const moe::DynamicFeedForward* layer : layers) {
      const std::int64_t experts = layer->weights().experts();
      const std::int64_t k = std::llround(share * static_cast<double>(experts));
      setting.gates.push_back({GateMode::topk, std::clamp<std::int64_t>(k, 1, experts), 0});
    }
    curve.settings.push_back(setting);
  }
  return curve;
}

Curve curve_by_layer(const std::vector<std::vector<double>>& choices) {
  Curve curve{"dynk_max_by_layer", "mean tau", {}};
  for (const std::vector<double>& taus : choices) {
    Setting setting{0, {}, taus};
    for (const double tau : taus) {
      setting.gates.push_back({GateMode::dynk_max, 1, tau});
      setting.value += tau / static_cast<double>(taus.size());
    }
    curve.settings.push_back(setting);
  }
  return curve;
}

json::object to_json(const Measurement& measurement) {
  json::object object = {{"loss", measurement.score.loss}};
  if (measurement.score.accuracy) object["accuracy"] = *measurement.score.accuracy;
  object["macs_per_token"] = measurement.macs_per_token;
  object["share_of_dense"] = measurement.share_of_dense();
  if (measurement.seconds_per_token) object["seconds_per_token"] = *measurement.seconds_per_token;
  if (measurement.seconds_per_decoded_token)
    object["seconds_per_decoded_token"] = *measurement.seconds_per_decoded_token;
  return object;
}

json::object point_json(const Setting& setting, const Measurement& measurement) {
  json::object point = {{"value", setting.value}};
  for (const auto& item : to_json(measurement)) point[item.key()] = item.value();
  json::array layers;
  for (std::size_t i = 0; i < measurement.layers.size(); ++i) {
    const LayerMeasurement& layer = measurement.layers[i];
    json::object entry;
    if (!setting.taus.empty()) entry["value"] = setting.taus[i];
    entry["macs_per_token"] = layer.macs_per_token;
    entry["mean_experts"] = layer.experts.mean_experts;
    entry["histogram"] = json::array(layer.experts.histogram.begin(), layer.experts.histogram.end());
    layers.push_back(std::move(entry));
  }
  point["layers"] = std::move(layers);
  return point;
}

json::array layers_json(nn::Module& model) {
  json::array layers;
  for (const moe::ConvertibleLayer& layer : moe::convertible_layers(model)) {
    if (!layer.converted) continue;
    const moe::DynamicCost cost = moe::cost_of(*layer.converted);
    layers.push_back({{"name", layer.name},
                      {"experts", layer.converted->weights().experts()},
                      {"expert_width", layer.converted->weights().expert_width()},
                      {"dense_macs", layer.dense},
                      {"macs_without_experts", cost.without_experts},
                      {"macs_per_expert", cost.per_expert}});
  }
  return layers;
}

/// Mean over the layers of the share of experts that tokens ran.
double share_of_experts(const json::value& point, const json::array& layers) {
  double sum = 0;
  for (std::size_t i = 0; i < layers.size(); ++i)
    sum +=
        point.at("layers").at(i).at("mean_experts").to_number<double>() / layers[i].at("experts").to_number<double>();
  return sum / static_cast<double>(layers.size());
}

std::string line_of(const std::string& setting, const Measurement& measurement) {
  char text[160];
  std::snprintf(text, sizeof text, "%-28s loss %.4f", setting.c_str(), measurement.score.loss);
  std::string line = text;
  if (measurement.score.accuracy) {
    std::snprintf(text, sizeof text, "  accuracy %.2f%%", 100 * *measurement.score.accuracy);
    line += text;
  }
  std::snprintf(text, sizeof text, "  %5.1f%% of the dense multiply-adds", 100 * measurement.share_of_dense());
  line += text;
  const auto add_time = [&](const char* what, const std::optional<double>& seconds) {
    if (!seconds) return;
    std::snprintf(text, sizeof text, "  %s %.3g us", what, 1e6 * *seconds);
    line += text;
  };
  add_time("per token", measurement.seconds_per_token);
  add_time("decoded", measurement.seconds_per_decoded_token);
  return line;
}

}  // namespace

void describe_sweep(Schema& schema, SweepConfig& config) {
  schema.section("sweep", "at which settings of the gates the converted model is measured");
  schema.number_list("dynk_max", config.dynk_max, 0, 1, "tau: experts of at least 1 - tau of the largest score run");
  schema.number_list("dynk", config.dynk, 0, 1, "tau: the best experts run whose scores make up this share of all");
  schema.number_list("topk", config.topk, 0, 1, "share of the experts that each token runs");
  schema.boolean("tau_by_layer", config.tau_by_layer, "dynk_max also with a tau chosen for each layer");
  schema.number("map_share", config.map_share, 0, 1,
                "of the experts that tokens run in the compute map, as near as a setting comes");
  schema.integer("repeats", config.measurement.repeats, 0, 1000, "timed passes, whose median counts; 0 takes no times");
  schema.integer("decoded_tokens", config.measurement.decoded_tokens, 1, 1 << 20, "tokens of a timed decoding");
}

std::vector<std::vector<double>> layer_taus(Task& task, const std::vector<double>& taus) {
  const KeptGates kept(task.model());
  const Layers& layers = kept.layers();
  std::vector<Gate> setting(layers.size());
  set_gates(layers, setting);
  const MeasurementOptions options{.training_batches = kTrainingBatches, .repeats = 0};
  const Measurement all = measure(task, options);
  std::vector<std::vector<double>> rises(layers.size()), costs(layers.size());  // [layer][tau]
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    for (const double tau : taus) {
      setting[layer] = {GateMode::dynk_max, 1, tau};
      set_gates(layers, setting);
      const Measurement one = measure(task, options);
      rises[layer].push_back(one.score.loss - all.score.loss);
      costs[layer].push_back(one.layers[layer].macs_per_token);
    }
    setting[layer] = {};
  }

  constexpr int kBudgets = 12;
  constexpr double kDearest = 10, kCheapest = 1e-3;  // rise of the loss that saving all multiply-adds would be worth
  std::vector<std::vector<double>> choices;
  for (int budget = 0; budget < kBudgets; ++budget) {
    const double worth = kDearest * std::pow(kCheapest / kDearest, budget / (kBudgets - 1.0));
    const double price = worth / all.dense_macs_per_token;
    std::vector<double> chosen;
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < taus.size(); ++i)
        if (rises[layer][i] + price * costs[layer][i] < rises[layer][best] + price * costs[layer][best]) best = i;
      chosen.push_back(taus[best]);
    }
    if (choices.empty() || choices.back() != chosen) choices.push_back(chosen);
  }
  return choices;
}

json::object sweep(Task& task, const SweepConfig& config, const Measurement& dense,
                   const std::function<void(const std::string&)>& report) {
  const KeptGates kept(task.model());
  const Layers& layers = kept.layers();
  std::vector<Curve> curves = {curve_by_tau(GateMode::dynk_max, config.dynk_max, layers),
                               curve_by_tau(GateMode::dynk, config.dynk, layers), curve_by_k(config.topk, layers)};
  if (config.tau_by_layer && !config.dynk_max.empty())
    curves.push_back(curve_by_layer(layer_taus(task, config.dynk_max)));

  report("sweep: " + line_of("dense", dense));
  json::array curves_json;
  for (const Curve& curve : curves) {
    if (curve.settings.empty()) continue;
    json::array points;
    for (const Setting& setting : curve.settings) {
      set_gates(layers, setting.gates);
      const Measurement measurement = measure(task, config.measurement);
      char name[64];
      std::snprintf(name, sizeof name, "%s %.3g", curve.method.c_str(), setting.value);
      report("sweep: " + line_of(name, measurement));
      points.push_back(point_json(setting, measurement));
    }
    curves_json.push_back({{"method", curve.method}, {"setting", curve.setting}, {"points", std::move(points)}});
  }
  return {{"kind", "sweep"},
          {"dense", to_json(dense)},
          {"layers", layers_json(task.model())},
          {"curves", std::move(curves_json)}};
}

void set_gates_near(nn::Module& model, const json::object& sweep, double share) {
  const json::array& curves = sweep.at("curves").as_array();
  check(!curves.empty(), "set_gates_near: the sweep has no curves");
  double nearest = std::numeric_limits<double>::infinity(), value = 0;
  for (const json::value& point : curves[0].at("points").as_array()) {
    const double distance = std::fabs(share_of_experts(point, sweep.at("layers").as_array()) - share);
    if (distance >= nearest) continue;
    nearest = distance;
    value = point.at("value").to_number<double>();
  }
  const GateMode mode = ops::gate_mode_from_name(curves[0].at("method").as_string());
  const auto layers = moe::converted_layers(model);
  const Curve curve = mode == GateMode::topk ? curve_by_k({value}, layers) : curve_by_tau(mode, {value}, layers);
  set_gates(layers, curve.settings[0].gates);
}

}  // namespace switchyard::train
