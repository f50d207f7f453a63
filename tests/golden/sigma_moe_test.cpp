#include "moe/sigma_moe.h"

#include "tests/golden/golden.h"

namespace switchyard::golden {
namespace {

constexpr double kRegularizerWeight = 0.01;  // part of the family's definition of `loss`

moe::SelectionKind selection_of(const File& file) {
  const std::string mode = file.text("selection_mode");
  const bool after = file.flag("activation_after_topk");
  if (mode == "sigmoid") return moe::SelectionKind::sigmoid;
  if (mode == "softmax") return after ? moe::SelectionKind::softmax_after_topk : moe::SelectionKind::softmax;
  check(mode == "sinkmoid", file.name(), ": selection_mode \"", mode, "\" is unknown");
  return moe::SelectionKind::sinkmoid;
}

moe::SigmaMoeOptions options_of(const File& file) {
  moe::SigmaMoeOptions options;
  options.width = file.integer("d_model");
  options.experts = file.integer("n_experts");
  options.expert_width = file.integer("expert_size");
  options.k = file.integer("k");
  options.output_width = file.integer("v_dim");
  options.activation = ops::activation_from_name(file.text("activation"));
  options.bias = file.flag("bias");
  options.selection = selection_of(file);
  if (options.selection == moe::SelectionKind::sinkmoid) options.sinkhorn_rounds = file.integer("sinkhorn_n_iters");
  options.entropy_regularizer = kRegularizerWeight;
  return options;
}

const std::map<std::string, std::string> kNames = {{"router.weight", "param.expert_sel"},
                                                   {"keys", "param.keys"},
                                                   {"values", "param.values"},
                                                   {"bias", "param.bias"},
                                                   {"output_bias", "param.o_bias"}};

struct Evaluation {
  Results results;
  std::vector<std::set<int>> chosen;  // per token
};

Evaluation evaluate(const File& file, const Numbers& numbers) {
  moe::SigmaMoe layer(options_of(file));
  layer.train(file.flag("training"));
  load_parameters(layer, file, kNames, numbers);
  const Variable x(numbers.of(file.tensor("x")), true);
  Evaluation evaluation;
  const auto indices = layer.router().route(x).indices.to_vector<int>();
  for (auto at = indices.begin(); at != indices.end(); at += layer.options().k)
    evaluation.chosen.emplace_back(at, at + layer.options().k);

  const nn::LayerOutput result = layer.forward(x);
  backward({result.output, result.regularizer}, {numbers.of(file.tensor("w")), {}});
  evaluation.results = {{"out", result.output.data()},
                        {"reg", ops::affine(result.regularizer.data(), 1 / kRegularizerWeight)},
                        {"grad.x", x.grad()}};
  for (const auto& parameter : layer.named_parameters())
    evaluation.results["grad." + kNames.at(parameter.name)] = parameter.variable.grad();
  return evaluation;
}

bool is_gradient(const std::string& name) { return name.starts_with("grad."); }

/// The names for which `wanted` holds.
void compare(const File& file, Comparison& comparison, const Results& actual, const Results& reference,
             const std::function<bool(const std::string&)>& wanted) {
  for (const auto& [name, expected] : reference) {
    if (!wanted(name)) continue;
    const bool per_expert = name.starts_with("grad.param.") && name != "grad.param.o_bias";
    const auto merged = [&](const Tensor& x) {
      return file.flag("tie") && per_expert ? merge_tied(x, file.integer("n_experts")) : x;
    };
    if (is_gradient(name)) comparison.gradient(name, merged(actual.at(name)), merged(expected));
    else comparison.forward(name, actual.at(name), expected);
  }
}

std::string check_file(const File& file) {
  const auto all = [](const std::string&) { return true; };
  const auto not_gradient = [](const std::string& name) { return !is_gradient(name); };
  std::map<std::string, double> worst;
  const Evaluation exact = evaluate(file, {DType::f64});
  const Results reference = reference_of(file, exact.results);
  for (const Precision& precision : {kF64, kF32}) {
    Comparison comparison(file, precision);
    const Results results = evaluate(file, {precision.dtype}).results;
    compare(file, comparison, results, reference, all);
    const double loss =
        objective(results.at("out"), file.tensor("w")) + kRegularizerWeight * results.at("reg").item<double>();
    comparison.loss(loss, file.tensor("loss").item<double>(), file.tensor("out"), file.tensor("w"));
    worst[std::string(name_of(precision.dtype))] = comparison.worst();
  }
  Comparison comparison(file, kBf16);
  const Evaluation in_bf16 = evaluate(file, {DType::bf16});
  compare(file, comparison, in_bf16.results, evaluate(file, {DType::f64, true}).results, all);
  if (in_bf16.chosen == exact.chosen) compare(file, comparison, in_bf16.results, reference, not_gradient);
  worst["bf16"] = comparison.worst();
  return remark(worst) + (in_bf16.chosen == exact.chosen ? "" : "; rounding to bf16 changes a selection");
}

TEST(SigmaMoe, files) { for_family("sigma_moe", check_file); }

}  // namespace
}  // namespace switchyard::golden
