#include "autograd/ops/elementwise.h"
#include "autograd/ops/expert_matmul.h"
#include "moe/conversion/clustering.h"
#include "moe/conversion/split.h"
#include "tests/golden/golden.h"

namespace switchyard::golden {
namespace {

using moe::DenseWeights;
using moe::ExpertWeights;

DenseWeights plain(const File& file, DType dtype) {
  return {file.tensor("dense.w1", dtype), file.tensor("dense.b1", dtype), {}, {},
          file.tensor("dense.w2", dtype), file.tensor("dense.b2", dtype)};
}

DenseWeights glu(const File& file, DType dtype) {
  return {file.tensor("glu.dense.up", dtype),   {}, file.tensor("glu.dense.gate", dtype), {},
          file.tensor("glu.dense.down", dtype), {}};
}

/// A layer with these weights.
std::unique_ptr<nn::FeedForward> layer_of(const DenseWeights& dense, ops::Activation activation) {
  nn::FeedForwardOptions options;
  options.width = dense.up.size(1);
  options.hidden = dense.up.size(0);
  options.activation = activation;
  options.gated = dense.gate.defined();
  options.bias = dense.up_bias.defined();
  auto layer = std::make_unique<nn::FeedForward>(options);
  const std::map<std::string, Tensor> values = {{"up.weight", dense.up},     {"up.bias", dense.up_bias},
                                                {"gate.weight", dense.gate}, {"gate.bias", dense.gate_bias},
                                                {"down.weight", dense.down}, {"down.bias", dense.down_bias}};
  for (const auto& parameter : layer->named_parameters()) parameter.variable.set_data(values.at(parameter.name));
  return layer;
}

/// The sum of all experts, plus last_bias.
Tensor all_experts(const Tensor& x, const ExpertWeights& weights, ops::Activation activation) {
  const Tensor everyone = Tensor::ones({x.size(0), weights.experts()}, DType::f32, x.device()).to(DType::boolean);
  const ops::RoutingPlan plan = ops::routing_plan_from_mask(everyone);
  const auto hidden = [&](const Tensor& w, const Tensor& bias, ops::Activation act) {
    return ops::expert_matmul(x, w, bias, {}, plan, {ops::Rows::token, ops::Rows::pair, act});
  };
  Tensor neurons = hidden(weights.gated() ? weights.gate : weights.up,
                          weights.gated() ? weights.gate_bias : weights.up_bias, activation);
  if (weights.gated()) neurons = ops::multiply(neurons, hidden(weights.up, weights.up_bias, ops::Activation::identity));
  const Tensor y = ops::expert_matmul(neurons, weights.down, {}, {}, plan, {ops::Rows::pair, ops::Rows::token});
  return weights.last_bias.defined() ? ops::add(y, weights.last_bias) : y;
}

/// Dense and split layer against the file and against each other.
void check_outputs(const File& file, Comparison& comparison, const std::string& prefix, const DenseWeights& dense,
                   const ExpertWeights& experts, const std::string& activation_name) {
  const ops::Activation activation = ops::activation_from_name(activation_name);
  const Tensor x = file.tensor("x", dense.up.dtype());
  const auto layer = layer_of(dense, activation);
  const Tensor dense_out = layer->forward(Variable(x.unsqueeze(0))).output.data().squeeze(0);
  const Tensor moe_out = all_experts(x, experts, activation);
  const std::string name = prefix + activation_name;
  comparison.forward(name + ".dense_out", dense_out, file.tensor(name + ".dense_out"));
  comparison.forward(name + ".moe_all_experts_out", moe_out, file.tensor(name + ".moe_all_experts_out"));
  comparison.compare(name + ": experts against dense", moe_out, dense_out,
                     dense.up.dtype() == DType::f64 ? 1e-11 : 1e-6);
  const DenseWeights read_back = moe::weights_of(*layer);
  EXPECT_EQ(read_back.up.to_vector<double>(), dense.up.to_vector<double>());
  EXPECT_EQ(read_back.gate.defined(), dense.gate.defined());
}

void expect_equal(const std::string& name, const Tensor& actual, const Tensor& reference) {
  ASSERT_EQ(actual.shape(), reference.shape()) << name;
  EXPECT_EQ(actual.to_vector<double>(), reference.to_vector<double>()) << name;
}

std::string check_file(const File& file) {
  std::map<std::string, double> worst;
  const Tensor labels = file.tensor("labels");
  for (const Precision& precision : {kF64, kF32}) {
    const DType dtype = precision.dtype;
    Comparison comparison(file, precision);
    const DenseWeights dense = plain(file, dtype), gated = glu(file, dtype);
    comparison.forward("kmeans_input", moe::neuron_features(dense), file.tensor("kmeans_input"));
    comparison.forward("glu.kmeans_input", moe::neuron_features(gated), file.tensor("glu.kmeans_input"));

    const ExpertWeights experts = moe::split_into_experts(dense, labels, file.integer("E"));
    expect_equal("w1", experts.up, file.tensor("experts.w1"));
    expect_equal("b1", experts.up_bias, file.tensor("experts.b1"));
    expect_equal("w2", experts.down, file.tensor("experts.w2"));
    expect_equal("last_bias", experts.last_bias.unsqueeze(0), file.tensor("experts.last_bias"));
    for (const char* activation : {"relu", "gelu"}) check_outputs(file, comparison, "", dense, experts, activation);

    const ExpertWeights gated_experts = moe::split_into_experts(gated, labels, file.integer("E"));
    expect_equal("glu.up", gated_experts.up, file.tensor("glu.experts.up"));
    expect_equal("glu.gate", gated_experts.gate, file.tensor("glu.experts.gate"));
    expect_equal("glu.down", gated_experts.down, file.tensor("glu.experts.down"));
    check_outputs(file, comparison, "glu.", gated, gated_experts, "relu");
    worst[std::string(name_of(dtype))] = comparison.worst();
  }
  return remark(worst);
}

TEST(Split, files) { for_family("d2dmoe_split", check_file); }

}  // namespace
}  // namespace switchyard::golden
