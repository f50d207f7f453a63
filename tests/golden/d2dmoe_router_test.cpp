#include "moe/conversion/dynamic_feed_forward.h"
#include "moe/conversion/router_training.h"
#include "tests/golden/d2dmoe.h"

namespace switchyard::golden {
namespace {

using moe::DynamicFeedForward;
using moe::ExpertWeights;

constexpr auto kActivation = ops::Activation::relu;  // of the experts; the router's own is in the file

moe::NormRouterOptions options_of(const File& file) {
  moe::NormRouterOptions options;
  options.hidden = file.integer("width");
  options.depth = file.integer("depth");
  options.bias = file.flag("router_bias");
  options.activation = ops::activation_from_name(file.text("activation"));
  options.output_activation = ops::activation_from_name(file.text("output_activation"));
  return options;
}

/// The file numbers activations as layers too: linear map i is its layer 2 i.
std::string name_in_file(const std::string& parameter) {
  const std::size_t begin = parameter.find('.') + 1, end = parameter.find('.', begin);
  const int index = std::stoi(parameter.substr(begin, end - begin));
  return "router.layers." + std::to_string(2 * index) + parameter.substr(end);
}

struct Converted {
  std::unique_ptr<DynamicFeedForward> layer;
  Tensor x;

  Converted(const File& file, DType dtype) : x(file.tensor("x", dtype)) {
    ExpertWeights weights;
    weights.up = file.tensor("param.w1", dtype);
    weights.up_bias = file.tensor("param.b1", dtype);
    weights.down = file.tensor("param.w2", dtype);
    weights.last_bias = file.tensor("param.last_bias", dtype).select(0, 0).clone();
    layer = std::make_unique<DynamicFeedForward>(weights, kActivation, options_of(file));
    for (const auto& parameter : layer->router().named_parameters())
      parameter.variable.set_data(file.tensor("param." + name_in_file(parameter.name), dtype));
  }
};

void compare_training(const File& file, Comparison& comparison, const Converted& converted) {
  const Tensor& x = converted.x;
  const moe::NormRouter& router = converted.layer->router();
  const Tensor rows = x.view({-1, x.size(-1)});
  const Tensor labels = moe::expert_output_norms(rows, converted.layer->weights(), kActivation);
  const Variable prediction = router.forward(Variable(x));
  const Tensor target = labels.view(prediction.shape());
  const Variable loss = moe::router_loss(moe::RouterLoss::mse, prediction, target);
  loss.backward();
  comparison.forward("labels", target, file.tensor("labels"));
  comparison.forward("pred", prediction.data(), file.tensor("pred"));
  comparison.forward("loss", loss.data(), file.tensor("loss"));
  for (const auto& parameter : router.named_parameters()) {
    const std::string name = "grad." + name_in_file(parameter.name);
    comparison.gradient(name, parameter.variable.grad(), file.tensor(name));
  }
}

void compare_gates(const File& file, Comparison& comparison, const Converted& converted) {
  DynamicFeedForward& layer = *converted.layer;
  const Variable x(converted.x);
  comparison.forward("all experts", layer.forward(x).output.data(), file.tensor("moe_out_all_experts"));
  for (const std::string& name : names_with(file, ".mask")) {
    const ops::Gate gate = gate_of(name, "");
    const Tensor mask = file.tensor(name + ".mask"), out = file.tensor(name + ".out");
    // Shares of scores of mixed sign mean nothing.
    if (gate.mode == ops::GateMode::dynk && file.text("output_activation") != "abs") continue;
    layer.set_gate(gate);
    EXPECT_EQ(ops::expert_mask(layer.router().forward(x).data(), gate).to_vector<int>(), mask.to_vector<int>()) << name;
    comparison.forward(name, layer.forward(x).output.data(), out);
  }
}

std::string check_file(const File& file) {
  EXPECT_EQ(file.integer("label_norm_order"), 2);
  std::map<std::string, double> worst;
  for (const Precision& precision : {kF64, kF32}) {
    Comparison comparison(file, precision);
    const Converted converted(file, precision.dtype);
    compare_training(file, comparison, converted);
    compare_gates(file, comparison, converted);
    worst[std::string(name_of(precision.dtype))] = comparison.worst();
  }
  return remark(worst);
}

TEST(D2dmoeRouter, files) { for_family("d2dmoe_router", check_file); }

}  // namespace
}  // namespace switchyard::golden
