#include <regex>

#include "autograd/ops/elementwise.h"
#include "moe/conversion/sparsity.h"
#include "tests/golden/golden.h"

namespace switchyard::golden {
namespace {

using moe::SparsityMeasure;

struct Evaluation {
  double loss;
  Tensor grad_preact, grad_act;
};

/// The penalty named `name` in the file, of pre-activations z: "relu_hoyer", "signed_hoyer", "clamped_l1.d=-10", ...
Evaluation evaluate(const std::string& name, const Variable& z) {
  static const std::regex pattern(R"((relu|signed|clamped)_(hoyer|l1)(\.d=(.*))?)");
  std::smatch match;
  check(std::regex_match(name, match, pattern), "golden: penalty \"", name, "\" is unknown");
  const auto measure = match[2] == "hoyer" ? SparsityMeasure::square_hoyer : SparsityMeasure::l1;
  z.zero_grad();
  if (match[1] == "relu") {
    const Variable act(ops::unary(ops::Unary::relu, z.data()), true);
    moe::sparsity_penalty(measure, act).backward();
    const Variable loss = moe::sparsity_penalty(measure, relu(z));
    loss.backward();
    return {loss.item<double>(), z.grad(), act.grad()};
  }
  const Variable loss =
      moe::sparsity_penalty(measure, match[1] == "clamped" ? moe::displaced(z, std::stod(match[4])) : z);
  loss.backward();
  return {loss.item<double>(), z.grad(), {}};
}

/// The gradient for the activations where any is active, else 0. For the plain sum of ReLU activations the file has the
/// derivative of x, 1, also at 0, where that of |x| is 0; nothing of it passes the ReLU.
Tensor where_active(const Tensor& gradient, const Variable& z) {
  return ops::unary_backward(ops::Unary::relu, gradient, z.data().to(gradient.dtype()));
}

void check_token_without_neurons(const Tensor& gradient) {
  for (const double value : gradient.select(0, 0).select(0, 0).to_vector<double>()) EXPECT_EQ(value, 0);
}

std::string check_file(const File& file) {
  std::map<std::string, double> worst;
  for (const Precision& precision : {kF64, kF32}) {
    Comparison comparison(file, precision);
    const Variable z(file.tensor("preact", precision.dtype), true);
    comparison.forward("square_hoyer_per_token", moe::square_hoyer(relu(z)).data(),
                       file.tensor("square_hoyer_per_token"));
    for (const std::string& tensor : file.names()) {
      if (!tensor.ends_with(".loss")) continue;
      const std::string name = tensor.substr(0, tensor.size() - 5);
      SCOPED_TRACE(name);
      const Evaluation ours = evaluate(name, z);
      const double reference = file.tensor(tensor).item<double>();
      comparison.expect(tensor, std::fabs(ours.loss - reference) / std::max(1.0, std::fabs(reference)),
                        precision.forward);
      comparison.gradient(name + ".grad_preact", ours.grad_preact, file.tensor(name + ".grad_preact"));
      if (!ours.grad_act.defined()) continue;
      comparison.gradient(name + ".grad_act", ours.grad_act, where_active(file.tensor(name + ".grad_act"), z));
      check_token_without_neurons(ours.grad_act);
      check_token_without_neurons(ours.grad_preact);
    }
    worst[std::string(name_of(precision.dtype))] = comparison.worst();
  }
  return remark(worst);
}

TEST(Sparsity, files) { for_family("d2dmoe_sparsity", check_file); }

}  // namespace
}  // namespace switchyard::golden
