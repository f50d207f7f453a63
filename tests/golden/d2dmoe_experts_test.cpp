#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "moe/conversion/dynamic_feed_forward.h"
#include "tests/golden/d2dmoe.h"

namespace switchyard::golden {
namespace {

using moe::DynamicFeedForward;
using moe::ExpertWeights;

constexpr double kTau = 0.5;  // of moe_dynk_max, part of the family's definition

/// Runs a layer on rows with a given choice and gathers "<prefix>out" and the gradients of sum(out * w).
struct Run {
  const File& file;
  Numbers numbers;
  Results& results;

  Tensor number(const std::string& name) const { return numbers.of(file.tensor(name)); }

  /// `names`: our parameters and what the file calls their gradients, after "<prefix>grad.".
  void operator()(const std::string& prefix, const ExpertWeights& weights, const std::string& activation,
                  const std::map<std::string, std::string>& names, const Tensor& mask, const Tensor& gates = {},
                  std::int64_t first_row = 0, const Variable& expert_bias = {}) const {
    const DynamicFeedForward layer(weights, ops::activation_from_name(activation));
    layer.zero_grad();
    const std::int64_t rows = file.integer("N");
    const Variable x(number("x").slice(0, first_row, rows).clone(), true);
    const Variable weighting = gates.defined() ? Variable(gates) : Variable{};
    Variable out = layer.run(x, mask, weighting);
    if (expert_bias.defined()) out = out + matmul(weighting, expert_bias);
    results[prefix + "out"] = out.data();
    out.backward(number("w").slice(0, first_row, rows));
    results[prefix + "grad.x"] = x.grad();
    for (const auto& parameter : layer.named_parameters())
      if (names.contains(parameter.name)) {
        const Tensor reference = file.tensor(prefix + "grad." + names.at(parameter.name));
        const bool by_neuron = parameter.name == "w1" || parameter.name == "gate";
        const Tensor& grad = parameter.variable.grad();
        results[prefix + "grad." + names.at(parameter.name)] =
            (by_neuron ? grad.transpose(1, 2) : grad).reshape(reference.shape());
      }
  }
};

Tensor mask_of(const Tensor& routing) { return routing.to(DType::boolean); }

ExpertWeights plain_weights(const Run& run, bool last_bias) {
  ExpertWeights weights;
  weights.up = run.number("param.w1");
  weights.up_bias = run.number("param.b1");
  weights.down = run.number("param.w2");
  if (last_bias) weights.last_bias = run.number("param.last_bias").select(0, 0).clone();
  return weights;
}

ExpertWeights gated_weights(const Run& run, bool bias) {
  ExpertWeights weights;
  weights.gate = run.number("glu.param.gate");
  weights.up = run.number("glu.param.up");
  weights.down = run.number("glu.param.down");
  if (!bias) return weights;
  weights.gate_bias = run.number("glu.param.bias_gate").squeeze(1);
  weights.up_bias = run.number("glu.param.bias_up").squeeze(1);
  return weights;
}

void run_plain(const Run& run, const std::string& activation) {
  const std::string prefix = activation + ".";
  const std::map<std::string, std::string> names = {{"w1", "w1"}, {"b1", "b1"}, {"w2", "w2"}};
  const Tensor routing = run.number("routing"), mask = mask_of(routing);
  run(prefix + "binary.", plain_weights(run, false), activation, names, mask);
  run(prefix + "weighted.", plain_weights(run, false), activation, names, mask, run.number("routing_weighted"));

  DynamicFeedForward whole(plain_weights(run, true), ops::activation_from_name(activation));
  const Variable x(run.number("x").unsqueeze(0));
  run.results[prefix + "moe_all_experts.out"] = whole.forward(x).output.data().squeeze(0);

  // The file gives `routing` for the router's scores.
  const Tensor chosen = ops::expert_mask(routing.slice(0, 1, routing.size(0)), {ops::GateMode::dynk_max, 1, kTau});
  const std::string dynamic = prefix + "moe_dynk_max.";
  EXPECT_EQ(chosen.to_vector<int>(), run.file.tensor(dynamic + "mask").to_vector<int>());
  run(dynamic, plain_weights(run, true), activation,
      {{"w1", "experts.w1"}, {"b1", "experts.b1"}, {"w2", "experts.w2"}, {"last_bias", "last_bias"}}, chosen, {}, 1);
}

void run_gated(const Run& run) {
  const Tensor mask = mask_of(run.file.tensor("routing")), gates = run.number("routing_weighted");
  std::map<std::string, std::string> names = {{"gate", "gate"}, {"w1", "up"}, {"w2", "down"}};
  for (const std::string activation : {"relu", "gelu", "gelu_tanh"})
    run("glu." + activation + ".", gated_weights(run, false), activation, names, mask, gates);
  // The bias inside each expert's last product, which no split of a dense layer makes, is added here.
  const Variable expert_bias(run.number("glu.param.bias_down").squeeze(1).clone(), true);
  names.insert({{"gate_bias", "bias_gate"}, {"b1", "bias_up"}});
  run("glu.relu_bias.", gated_weights(run, true), "relu", names, mask, gates, 0, expert_bias);
  run.results["glu.relu_bias.grad.bias_down"] = expert_bias.grad().unsqueeze(1);
}

Results evaluate(const File& file, const Numbers& numbers) {
  Results results;
  const Run run = {file, numbers, results};
  for (const std::string activation : {"relu", "gelu"}) run_plain(run, activation);
  run_gated(run);
  return results;
}

double worst_error(const File& file, const Precision& precision, const Results& actual, const Results& reference) {
  Comparison comparison(file, precision);
  for (const auto& [name, expected] : reference)
    if (name.find("grad.") != std::string::npos) comparison.gradient(name, actual.at(name), expected);
    else comparison.forward(name, actual.at(name), expected);
  return comparison.worst();
}

std::string check_file(const File& file) {
  std::map<std::string, double> worst;
  const Results exact = evaluate(file, {DType::f64}), reference = reference_of(file, exact);
  worst["f64"] = worst_error(file, kF64, exact, reference);
  worst["f32"] = worst_error(file, kF32, evaluate(file, {DType::f32}), reference);
  worst["bf16"] = worst_error(file, kBf16, evaluate(file, {DType::bf16}), evaluate(file, {DType::f64, true}));
  return remark(worst);
}

TEST(D2dmoeExperts, files) { for_family("d2dmoe_experts", check_file); }

}  // namespace
}  // namespace switchyard::golden
