#include "autograd/ops/elementwise.h"
#include "moe/conversion/projection.h"
#include "nn/feed_forward.h"
#include "tests/golden/golden.h"

namespace switchyard::golden {
namespace {

const std::map<std::string, std::string> kNames = {
    {"up.weight", "param.w1"}, {"up.bias", "param.b1"}, {"down.weight", "param.w2"}, {"down.bias", "param.b2"}};

void check_widths(const File& file) {
  const auto factors = file.tensor("flops_factor").to_vector<double>();
  const auto widths = file.tensor("d").to_vector<std::int64_t>();
  const auto reference = file.tensor("attention_dim").to_vector<std::int64_t>();
  for (std::size_t i = 0; i < factors.size(); ++i)
    for (std::size_t j = 0; j < widths.size(); ++j)
      EXPECT_EQ(moe::projection_width(widths[j], widths[j], factors[i]), reference[i * widths.size() + j])
          << "d = " << widths[j] << ", factor " << factors[i];
}

void check_layer(const File& file, Comparison& comparison, bool residual, const std::string& activation, DType dtype) {
  const std::int64_t width = file.integer("D");
  EXPECT_EQ(moe::projection_width(width, width, file.real("flops_factor")), file.integer("hidden"));
  moe::StandInOptions options;
  options.flops_factor = file.real("flops_factor");
  options.activation = ops::activation_from_name(activation);
  options.residual = residual;
  const auto stand_in = moe::stand_in_for(nn::Linear(width, width), options);
  nn::FeedForward& layer = *stand_in;
  load_parameters(layer, file, kNames, {dtype});
  const Variable x(file.tensor("x", dtype), true);
  const Variable out = layer.forward(x).output;
  out.backward(file.tensor("w", dtype));
  const std::string prefix = (residual ? "residual." : "simple.") + activation + ".";
  comparison.forward(prefix + "out", out.data(), file.tensor(prefix + "out"));
  comparison.gradient(prefix + "grad.x", x.grad(), file.tensor(prefix + "grad.x"));
  for (const auto& parameter : layer.named_parameters()) {
    const std::string name = prefix + "grad." + kNames.at(parameter.name).substr(6);  // without "param."
    comparison.gradient(name, parameter.variable.grad(), file.tensor(name));
  }
}

std::string check_file(const File& file) {
  check_widths(file);
  std::map<std::string, double> worst;
  for (const Precision& precision : {kF64, kF32}) {
    Comparison comparison(file, precision);
    for (const bool residual : {false, true})
      for (const char* activation : {"relu", "gelu"})
        check_layer(file, comparison, residual, activation, precision.dtype);
    worst[std::string(name_of(precision.dtype))] = comparison.worst();
  }
  return remark(worst);
}

TEST(Projection, files) { for_family("d2dmoe_mha_projection", check_file); }

}  // namespace
}  // namespace switchyard::golden
