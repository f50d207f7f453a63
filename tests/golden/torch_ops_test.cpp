#include "autograd/ops/attention.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/index.h"
#include "autograd/ops/loss.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/norm.h"
#include "autograd/ops/shape.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "nn/optim/schedule.h"
#include "tests/golden/golden.h"

namespace switchyard::golden {
namespace {

/// The README asks more of these than of whole layers.
const Precision kExact = {DType::f64, 1e-12, 1e-12, 1e-12};

using Inputs = std::map<std::string, Variable>;

/// [B, H, T, d] as in the files <-> [B, T, H, d].
Variable swap_heads(const Variable& x) { return transpose(x, 1, 2); }

double number_after(const std::string& name, const std::string& prefix) {
  return std::stod(name.substr(prefix.size()));
}

Variable rotate(const Variable& x, double base, std::int64_t first_position) {
  const auto tables = ops::rope_tables(first_position + x.size(2), x.size(3), base, x.dtype(), x.device());
  return swap_heads(rope(swap_heads(x), tables, first_position));
}

Variable run_rope(const Inputs& in, double base) {
  const Variable q = rotate(in.at("q"), base, 0), k = rotate(in.at("k"), base, 0);
  Shape stacked = q.shape();
  stacked.insert(stacked.begin(), 1);
  return concat({reshape(q, stacked), reshape(k, stacked)}, 0);
}

/// The last query stands at the last key; flat q, then flat k.
Variable run_rope_offset(const Inputs& in) {
  const Variable &q = in.at("q"), &k = in.at("k");
  return concat({reshape(rotate(q, 10000, k.size(2) - q.size(2)), {-1}), reshape(rotate(k, 10000, 0), {-1})}, 0);
}

Variable run_causal_attention(const Inputs& in) {
  ops::AttentionOptions options;
  options.causal = true;
  options.scale = 1 / std::sqrt(static_cast<double>(in.at("q").size(3)));
  return swap_heads(attention(swap_heads(in.at("q")), swap_heads(in.at("k")), swap_heads(in.at("v")), options));
}

/// The operator of that name in the file, applied to its inputs.
Variable run_operator(const File& file, const std::string& name, const Inputs& in) {
  const auto x = [&]() -> const Variable& { return in.at("x"); };
  if (name == "layer_norm") return layer_norm(x(), in.at("weight"), in.at("bias"), file.real("layer_norm_eps"));
  if (name == "rms_norm") return rms_norm(x(), in.at("weight"), file.real("rms_norm_eps"));
  if (name == "gelu_exact") return unary(ops::Unary::gelu, x());
  if (name == "gelu_tanh" || name == "relu" || name == "silu" || name == "sigmoid")
    return unary(ops::activation_from_name(name), x());
  if (name == "softmax" || name == "softmax_large") return softmax(x());
  if (name == "log_softmax" || name == "log_softmax_large") return log_softmax(x());
  if (name == "logsumexp") return logsumexp(x());
  if (name == "linear") return linear(x(), in.at("weight"), in.at("bias"));
  if (name == "embedding") return embedding(in.at("weight"), file.tensor(name + ".in.index"));
  if (name == "cross_entropy")
    return cross_entropy(in.at("logits"), file.tensor(name + ".in.target"), file.integer("ignore_index"));
  if (name.starts_with("rope.base=")) return run_rope(in, number_after(name, "rope.base="));
  if (name == "rope_offset") return run_rope_offset(in);
  if (name == "causal_attention") return run_causal_attention(in);
  fail(file.name(), ": operator ", name, " is unknown");
}

void check_operator(const File& file, const std::string& name, Comparison& comparison, DType dtype) {
  Inputs inputs;
  const std::string prefix = name + ".in.";
  for (const std::string& tensor : file.names())
    if (tensor.starts_with(prefix) && is_floating(file.tensor(tensor).dtype()))
      inputs[tensor.substr(prefix.size())] = Variable(file.tensor(tensor, dtype), true);
  const Variable out = run_operator(file, name, inputs);
  comparison.forward(name, out.data(), file.tensor(name + ".out"));
  out.backward(file.tensor(name + ".w", dtype));
  for (const auto& [input, variable] : inputs)
    comparison.gradient(name + ".grad." + input, variable.grad(), file.tensor(name + ".grad." + input));
}

/// The numbers i for which "<prefix>p<i>" exists.
std::vector<std::string> parameters_of(const File& file, const std::string& prefix) {
  std::vector<std::string> names;
  for (int i = 0; file.has(prefix + "p" + std::to_string(i)); ++i) names.push_back("p" + std::to_string(i));
  check(!names.empty(), file.name(), ": no tensor ", prefix, "p0");
  return names;
}

void check_adamw(const File& file, const std::string& name, Comparison& comparison, DType dtype, double allowed) {
  std::vector<nn::NamedParameter> parameters;
  for (const std::string& p : parameters_of(file, name + ".init."))
    parameters.push_back({p, Variable(file.tensor(name + ".init." + p, dtype).clone(), true)});
  nn::AdamWOptions options;
  options.learning_rate = file.real("adamw_lr");
  const std::string betas = file.text("adamw_betas");
  options.beta1 = std::stod(betas);
  options.beta2 = std::stod(betas.substr(betas.find(',') + 1));
  options.epsilon = file.real("adamw_eps");
  nn::AdamW optimizer(nn::parameter_groups(parameters, number_after(name, "adamw.wd="), true), options);
  const std::int64_t steps = file.integer("adamw_steps");
  for (std::int64_t step = 0; step < steps; ++step) {
    for (const auto& p : parameters)
      p.variable.set_grad(file.tensor(name + ".grads." + p.name).select(0, step).to(dtype).contiguous());
    optimizer.step();
    for (const auto& p : parameters)
      comparison.compare(name + " step " + std::to_string(step) + " " + p.name, p.variable.data(),
                         file.tensor(name + ".params_after_step." + p.name).select(0, step), allowed);
  }
  int moments = 0;
  for (const auto& [state, tensor] : optimizer.state_tensors())
    for (const auto& p : parameters)
      for (const auto& [ours, theirs] :
           {std::pair(".first_moment", ".final_exp_avg."), std::pair(".second_moment", ".final_exp_avg_sq.")})
        if (state == p.name + ours) {
          comparison.compare(name + theirs + p.name, tensor, file.tensor(name + theirs + p.name), allowed);
          ++moments;
        }
  EXPECT_EQ(moments, 2 * static_cast<int>(parameters.size()));
}

void check_clipping(const File& file, const std::string& name, Comparison& comparison, DType dtype) {
  Variables parameters;
  const auto names = parameters_of(file, name + ".grad_in.");
  for (const std::string& p : names) {
    const Tensor gradient = file.tensor(name + ".grad_in." + p, dtype);
    parameters.emplace_back(Tensor::zeros_like(gradient), true);
    parameters.back().set_grad(gradient);
  }
  const nn::ClipResult clip = nn::clip_gradients(parameters, number_after(name, "clip.max="));
  comparison.forward(name + ".norm", clip.norm.reshape({}), file.tensor(name + ".norm"));
  const auto factor = clip.factor.item<double>();
  for (std::size_t i = 0; i < names.size(); ++i)
    comparison.forward(name + " " + names[i], ops::affine(parameters[i].grad(), factor),
                       file.tensor(name + ".grad_out." + names[i]));
}

void check_schedule(const File& file, const std::string& name, Comparison& comparison) {
  const std::int64_t total = file.integer("schedule_total"), warmup = file.integer("schedule_warmup");
  nn::Schedule schedule;
  if (name == "schedule.cosine_with_linear_warmup") schedule = nn::schedule::cosine(warmup, total);
  else if (name == "schedule.cosine_annealing") schedule = nn::schedule::cosine_annealing(total);
  else if (name == "schedule.switchhead_warmup_then_cosine")
    schedule = nn::schedule::switchhead_warmup_then_cosine(warmup, total);
  else fail(file.name(), ": schedule ", name, " is unknown");
  const Tensor reference = file.tensor(name);
  std::vector<double> factors;
  for (std::int64_t i = 0; i < reference.numel(); ++i) factors.push_back(schedule(i));
  comparison.forward(name, Tensor::from(factors, reference.shape()), reference);
}

/// The text before the first occurrence of one of the marks, for names that have one.
std::set<std::string> names_before(const File& file, const std::string& mark) {
  std::set<std::string> names;
  for (const std::string& tensor : file.names())
    if (const auto at = tensor.find(mark); at != std::string::npos) names.insert(tensor.substr(0, at));
  return names;
}

double check_at(const File& file, const Precision& precision) {
  Comparison comparison(file, precision);
  for (const std::string& name : names_before(file, ".in.")) check_operator(file, name, comparison, precision.dtype);
  for (const std::string& name : names_before(file, ".init."))
    check_adamw(file, name, comparison, precision.dtype, precision.dtype == DType::f64 ? 1e-12 : 1e-6);
  for (const std::string& name : names_before(file, ".grad_in."))
    check_clipping(file, name, comparison, precision.dtype);
  if (precision.dtype == DType::f64)
    for (const std::string& name : file.names())
      if (name.starts_with("schedule.")) check_schedule(file, name, comparison);
  for (const std::string& name : file.names())
    if (name.ends_with(".inv_freq")) file.tensor(name);  // a table for debugging
  return comparison.worst();
}

TEST(TorchOps, files) {
  for_family("torch_ops", [](const File& file) {
    return remark({{"f64", check_at(file, kExact)}, {"f32", check_at(file, kF32)}});
  });
}

}  // namespace
}  // namespace switchyard::golden
