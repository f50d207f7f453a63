#include "autograd/ops/elementwise.h"
#include "autograd/ops/index.h"
#include "moe/language_model.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "tests/golden/golden.h"

namespace switchyard::golden {
namespace {

moe::LanguageModelConfig config_of(const File& file) {
  moe::LanguageModelConfig config;
  config.vocabulary_size = file.integer("vocab");
  config.width = file.integer("d_model");
  config.layers = file.integer("n_layers");
  config.context = file.integer("T");
  config.position = moe::PositionKind::rope;
  config.rope_fraction = file.real("rotate_fraction");
  config.rope_base = std::stod(file.text("rope_base", "10000"));
  config.head_bias = true;
  config.attention.heads = file.integer("n_heads");
  config.attention.head_width = file.integer("d_head");
  config.attention.experts = file.integer("n_experts");
  config.attention.k = file.integer("moe_k");
  config.feedforward.experts = file.integer("ffn_experts");
  config.feedforward.expert_width = file.integer("ffn_expert_size");
  config.feedforward.k = file.integer("ffn_k");
  config.feedforward.entropy_regularizer = 1;  // raw, so that reg_sum can be read; weighted below
  return config;
}

std::map<std::string, std::string> parameter_names(const moe::LanguageModelConfig& config) {
  std::map<std::string, std::string> names = {{"embedding.weight", "embed.weight"},
                                              {"final_norm.weight", "ln_f.weight"},
                                              {"final_norm.bias", "ln_f.bias"},
                                              {"output.weight", "head.weight"},
                                              {"output.bias", "head.bias"}};
  const std::map<std::string, std::string> in_layer = {{"attention_norm.weight", "ln1.weight"},
                                                       {"attention_norm.bias", "ln1.bias"},
                                                       {"attention.query.weight", "att.q.weight"},
                                                       {"attention.key.weight", "att.k.weight"},
                                                       {"attention.value.weight", "att.v"},
                                                       {"attention.output.weight", "att.o"},
                                                       {"attention.value_router.weight", "att.sel_v"},
                                                       {"attention.output_router.weight", "att.sel_o"},
                                                       {"attention.output_gate", "att.sel_o"},
                                                       {"feed_forward_norm.weight", "ln2.weight"},
                                                       {"feed_forward_norm.bias", "ln2.bias"},
                                                       {"feed_forward.keys", "moe.keys"},
                                                       {"feed_forward.values", "moe.values"},
                                                       {"feed_forward.router.weight", "moe.expert_sel"}};
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    for (const auto& [ours, theirs] : in_layer) names[prefix + ours] = prefix + theirs;
  }
  return names;
}

struct Tolerance {
  double loss, norm, final_parameter;
  double growth;  // allowed per 50 steps of a trajectory longer than 20
};

class Trajectory {
 public:
  Trajectory(const File& file, const Precision& precision, Tolerance tolerance)
      : file_(file),
        precision_(precision),
        tolerance_(tolerance),
        comparison_(file, precision),
        config_(config_of(file)),
        names_(parameter_names(config_)),
        model_(moe::build_language_model(config_)) {
    const auto steps = static_cast<double>(file.integer("steps"));
    const double factor = steps > 20 ? std::pow(tolerance.growth, std::ceil(steps / 50)) : 1;
    tolerance_.loss *= factor;
    tolerance_.norm *= factor;
    tolerance_.final_parameter *= factor;
    std::map<std::string, std::string> initial;
    for (const auto& [ours, theirs] : names_) initial[ours] = "init." + theirs;
    load_parameters(*model_, file, initial, {precision.dtype});
  }

  void run() {
    const Tensor tokens = file_.tensor("tokens");
    const std::int64_t steps = tokens.size(0), length = tokens.size(2) - 1;
    ASSERT_EQ(steps, file_.integer("steps"));
    nn::AdamW optimizer(nn::parameter_groups(model_->named_parameters(), file_.real("weight_decay"), true),
                        {file_.real("lr"), file_.real("beta1"), file_.real("beta2"), file_.real("eps")});
    for (std::int64_t step = 0; step < steps; ++step) {
      const Tensor text = tokens.select(0, step);
      const Tensor inputs = text.slice(1, 0, length).contiguous(), targets = text.slice(1, 1, length + 1).contiguous();
      if (step == 0) check_first_forward(inputs);
      const nn::LanguageModelLoss loss = model_->loss(inputs, targets);
      const Variable total =
          loss.cross_entropy + cast(loss.regularizer, loss.cross_entropy.dtype()) * file_.real("reg_weight");
      optimizer.zero_grad();
      total.backward();
      if (step == 0) check_first_gradients();
      const nn::ClipResult clip = nn::clip_gradients(model_->parameters(), file_.real("clip"));
      check_number("traj.loss", step, total.item<double>(), tolerance_.loss);
      check_number("traj.ce", step, loss.cross_entropy.item<double>(), tolerance_.loss);
      check_number("traj.reg_sum", step, loss.regularizer.item<double>(), tolerance_.loss);
      check_number("traj.grad_norm", step, clip.norm.item<double>(), tolerance_.norm);
      optimizer.step(clip.factor);
    }
    for (const auto& parameter : model_->named_parameters()) {
      const std::string name = "final." + names_.at(parameter.name);
      comparison_.compare(name, parameter.variable.data(), file_.tensor(name), tolerance_.final_parameter);
    }
  }

  double worst() const { return comparison_.worst(); }

 private:
  void check_number(const std::string& series, std::int64_t step, double actual, double allowed) {
    const double expected = file_.tensor(series).select(0, step).item<double>();
    const double error =
        std::isfinite(actual) ? std::fabs(actual - expected) / std::max(std::fabs(expected), 1e-3) : INFINITY;
    comparison_.expect(series + " of step " + std::to_string(step), error, allowed);
  }

  void check_first_forward(const Tensor& inputs) {
    if (file_.has("step0.logits"))
      comparison_.forward("step0.logits", model_->logits(inputs).data(), file_.tensor("step0.logits"));
    if (!file_.has("step0.regs")) return;
    Variable x;
    for (const auto& parameter : model_->named_parameters())
      if (parameter.name == "embedding.weight") x = embedding(parameter.variable, inputs);
    std::vector<double> regularizers;
    for (std::int64_t layer = 0; layer < model_->layers(); ++layer) {
      const nn::LayerOutput out = model_->block(layer).forward(x);
      regularizers.push_back(out.regularizer.item<double>());
      x = out.output;
    }
    comparison_.forward("step0.regs", Tensor::from(regularizers, {model_->layers()}), file_.tensor("step0.regs"));
  }

  void check_first_gradients() {
    for (const auto& parameter : model_->named_parameters()) {
      const std::string name = "step0.grad." + names_.at(parameter.name);
      if (file_.has(name)) comparison_.gradient(name, parameter.variable.grad(), file_.tensor(name));
    }
  }

  const File& file_;
  Precision precision_;
  Tolerance tolerance_;
  Comparison comparison_;
  moe::LanguageModelConfig config_;
  std::map<std::string, std::string> names_;
  std::unique_ptr<nn::LanguageModel> model_;
};

TEST(LanguageModel, trajectory) {
  for_family("switchall_lm_trajectory", [](const File& file) {
    Trajectory exact(file, kF64, {1e-10, 1e-10, 1e-8, 10});
    exact.run();
    Trajectory single(file, kF32, {1e-5, 1e-4, 1e-3, 2});
    single.run();
    return remark({{"f64", exact.worst()}, {"f32", single.worst()}});
  });
}

}  // namespace
}  // namespace switchyard::golden
