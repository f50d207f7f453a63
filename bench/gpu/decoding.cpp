// Decoding: a token or a few at a time, replayed as a graph, so that what the host does is left out. Calls find other
// weights than the calls before, as those of a model's layers are: so many sets that they do not fit the L2 cache.
//
//   d2dmoe_decode_<tokens>_<width>_<experts>x<neurons>_<percent>   a converted layer with router and gate, of whose
//                                                                  experts that share runs; beside it the dense layer
//   gpt_decode_<width>x<layers>_<experts>x<neurons>_<percent>      a converted GPT, gate topk with that share of the
//                                                                  experts, one token of 64; beside it the dense GPT
//   linear_<rows>_<inputs>x<outputs>                               beside it the product by cuBLAS

#include <algorithm>
#include <functional>
#include <memory>

#include "autograd/grad_mode.h"
#include "bench/gpu/row.h"
#include "core/graph.h"
#include "core/ops/matmul.h"
#include "moe/conversion/convert.h"
#include "moe/language_model.h"

namespace switchyard::bench {
namespace {

constexpr std::int64_t kVocabulary = 256;

struct Layer {
  std::int64_t width, hidden, experts;

  double weights() const { return 2.0 * static_cast<double>(width * hidden); }
};

/// So many sets of bf16 weights that they do not fit the L2 cache.
std::size_t sets_of(double weights) { return static_cast<std::size_t>(std::clamp(200e6 / (2 * weights), 2.0, 48.0)); }

/// Time of one call, call(i) for each set i of weights in turn.
double replayed_ms(std::size_t sets, const std::function<void(std::size_t)>& call) {
  const std::size_t rounds = 24 / sets + 1;
  const auto all = [&] {
    for (std::size_t i = 0; i < rounds * sets; ++i) call(i % sets);
  };
  all();
  const DeviceGraph recorded(Device::cuda(), all);
  return median_ms([&] { recorded.replay(); }) / static_cast<double>(rounds * sets);
}

/// The tau at which a token with these scores, the first row, runs that share of its experts.
double tau_for(const Tensor& scores, double share) {
  std::vector<double> first = scores.select(0, 0).to_vector<double>();
  std::sort(first.begin(), first.end(), std::greater<>());
  const auto count = std::max<std::int64_t>(std::llround(share * static_cast<double>(first.size())), 1);
  return std::min(1 - first[static_cast<std::size_t>(count - 1)] / first[0] + 1e-6, 1.0);
}

std::unique_ptr<moe::DynamicFeedForward> converted(const Layer& layer, const Variable& x, double share) {
  const std::int64_t neurons = layer.hidden / layer.experts;
  moe::ExpertWeights weights;
  weights.up = random_tensor({layer.experts, neurons, layer.width}).transpose(1, 2);
  weights.up_bias = random_tensor({layer.experts, neurons});
  weights.down = random_tensor({layer.experts, neurons, layer.width});
  weights.last_bias = random_tensor({layer.width});
  auto made = std::make_unique<moe::DynamicFeedForward>(weights, ops::Activation::relu);
  const double tau = tau_for(made->router().forward(Variable(x.data().select(0, 0))).data(), share);
  made->set_gate({moe::GateMode::dynk_max, 1, tau});
  return made;
}

double converted_ms(const Layer& layer, const Variable& x, double share) {
  std::vector<std::unique_ptr<moe::DynamicFeedForward>> layers(sets_of(layer.weights()));
  for (auto& made : layers) made = converted(layer, x, share);
  return replayed_ms(layers.size(), [&](std::size_t i) { layers[i]->forward(x); });
}

double dense_ms(const Layer& layer, const Tensor& x) {
  struct Weights {
    Tensor up, up_bias, down, down_bias;
  };
  std::vector<Weights> sets(sets_of(layer.weights()));
  for (Weights& set : sets)
    set = {random_tensor({layer.hidden, layer.width}), random_tensor({layer.hidden}),
           random_tensor({layer.width, layer.hidden}), random_tensor({layer.width})};
  return replayed_ms(sets.size(), [&](std::size_t i) {
    const Weights& w = sets[i];
    ops::linear(ops::linear(x, w.up, w.up_bias, {}, ops::Activation::relu), w.down, w.down_bias);
  });
}

Row converted_row(const Layer& layer, std::int64_t tokens, int percent) {
  const NoGradGuard no_gradients;
  const Tensor x = random_tensor({1, tokens, layer.width});
  const double share = percent / 100.0;
  Row row{.ms = converted_ms(layer, Variable(x), share), .dense_ms = dense_ms(layer, x)};
  row.bytes = 2 * layer.weights() * share;
  row.tokens = static_cast<double>(tokens);
  return row;
}

/// Time of a token, of 64 that are decoded one after the other.
double decoding_ms(nn::LanguageModel& model) {
  constexpr std::int64_t kTokens = 64;
  const Tensor text = random_ids({1, kTokens}, kVocabulary);
  const auto decode = [&] {
    nn::DecodingState state;
    for (std::int64_t t = 0; t < kTokens; ++t) model.decode(text.slice(1, t, t + 1), state);
  };
  decode();
  const DeviceGraph recorded(Device::cuda(), decode);
  return median_ms([&] { recorded.replay(); }) / kTokens;
}

Row gpt_row(const Layer& layer, std::int64_t layers, int percent) {
  moe::LanguageModelConfig config;
  config.vocabulary_size = kVocabulary;
  config.width = layer.width;
  config.layers = layers;
  config.attention.kind = moe::AttentionKind::dense;
  config.attention.heads = layer.width / 64;
  config.feedforward = {.kind = moe::FeedForwardKind::dense, .bias = true, .width = layer.hidden};
  const auto model = moe::build_language_model(config);
  model->to(DType::bf16);
  model->to(Device::cuda());
  model->eval();
  Row row{.dense_ms = decoding_ms(*model), .tokens = 1};
  moe::ConversionOptions options;
  options.expert_width = layer.hidden / layer.experts;
  options.cluster = false;
  moe::convert_feed_forwards(*model, options);
  const std::int64_t k = std::max<std::int64_t>(layer.experts * percent / 100, 1);
  moe::set_gates(*model, {moe::GateMode::topk, k});
  row.ms = decoding_ms(*model);
  return row;
}

Row linear_row(std::int64_t rows, std::int64_t inputs, std::int64_t outputs) {
  const double weights = static_cast<double>(inputs * outputs);
  std::vector<Tensor> sets(sets_of(weights));
  for (Tensor& set : sets) set = random_tensor({outputs, inputs});
  const Tensor x = random_tensor({rows, inputs});
  Row row{.ms = replayed_ms(sets.size(), [&](std::size_t i) { ops::linear(x, sets[i]); })};
  row.dense_ms = replayed_ms(sets.size(), [&](std::size_t i) { ops::matmul(x, sets[i].transpose(0, 1)); });
  row.bytes = 2 * weights;
  row.tokens = static_cast<double>(rows);
  return row;
}

}  // namespace

std::vector<Benchmark> decoding_benchmarks() {
  std::vector<Benchmark> all;
  for (const Layer& layer : {Layer{768, 3072, 24}, Layer{768, 3072, 128}, Layer{768, 3072, 768}, Layer{2048, 8192, 64},
                             Layer{2048, 8192, 256}})
    for (const std::int64_t tokens : {1, 8})
      for (const int percent : {100, 50, 25, 10})
        all.push_back({"d2dmoe_decode_" + std::to_string(tokens) + "_" + std::to_string(layer.width) + "_" +
                           std::to_string(layer.experts) + "x" + std::to_string(layer.hidden / layer.experts) + "_" +
                           std::to_string(percent),
                       [=] { return converted_row(layer, tokens, percent); }});
  for (const auto& [layer, layers] : {std::pair{Layer{768, 3072, 128}, 12}, {Layer{2048, 8192, 256}, 4}})
    for (const int percent : {25, 10})
      all.push_back({"gpt_decode_" + std::to_string(layer.width) + "x" + std::to_string(layers) + "_" +
                         std::to_string(layer.experts) + "x" + std::to_string(layer.hidden / layer.experts) + "_" +
                         std::to_string(percent),
                     [=, layer = layer, layers = layers] { return gpt_row(layer, layers, percent); }});
  for (const std::int64_t rows : {1, 8})
    for (const auto& [inputs, outputs] : {std::pair{768, 768}, {768, 3072}, {3072, 768}, {2048, 8192}, {8192, 2048}})
      all.push_back({"linear_" + std::to_string(rows) + "_" + std::to_string(inputs) + "x" + std::to_string(outputs),
                     [=, inputs = inputs, outputs = outputs] { return linear_row(rows, inputs, outputs); }});
  return all;
}

}  // namespace switchyard::bench
