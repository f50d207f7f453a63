#include "moe/conversion/norm_router.h"

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "core/ops/norm.h"

namespace switchyard::moe {
namespace {

const NormRouterOptions& checked(const NormRouterOptions& options) {
  const auto at_least_one = [](const char* name, std::int64_t value) {
    check(value >= 1, "NormRouter: ", name, " is ", value, ", expected at least 1");
  };
  at_least_one("width", options.width);
  at_least_one("experts", options.experts);
  at_least_one("hidden", options.hidden);
  at_least_one("depth", options.depth);
  return options;
}

}  // namespace

NormRouter::NormRouter(const NormRouterOptions& options, Generator& generator) : options_(checked(options)) {
  for (std::int64_t i = 0; i < options_.depth; ++i) {
    const std::int64_t inputs = i == 0 ? options_.width : options_.hidden;
    const std::int64_t outputs = i + 1 == options_.depth ? options_.experts : options_.hidden;
    layers_.push_back(
        std::make_unique<nn::Linear>(inputs, outputs, options_.bias, nn::init::fan_in_normal(), generator));
    register_module("layers." + std::to_string(i), *layers_.back());
  }
}

Variable NormRouter::hidden(const Variable& x) const {
  check(x.rank() >= 1 && x.size(-1) == options_.width, "NormRouter: x must be [..., ", options_.width, "], got ",
        x.shape());
  Variable hidden = x;
  for (std::size_t i = 0; i + 1 < layers_.size(); ++i)
    hidden = linear_activation(hidden, layers_[i]->weight(), layers_[i]->bias(), options_.activation);
  return hidden;
}

Variable NormRouter::forward(const Variable& x) const {
  const NameScope scope("router");
  const nn::Linear& last = *layers_.back();
  const Variable scores = linear(hidden(x), last.weight(), last.bias(), ops::compute_dtype(x.dtype()));
  return activate(options_.output_activation, scores);
}

ops::ExpertRouter NormRouter::before_scores(const Variable& x, const ops::Gate& gate) const {
  const NoGradGuard no_gradients;
  const NameScope scope("router");
  const nn::Linear& last = *layers_.back();
  return {hidden(x).data(), last.weight().data(), data_or_none(last.bias()), options_.output_activation, gate};
}

void NormRouter::scale_scores(double factor) {
  const ops::Activation activation = options_.output_activation;
  check(factor > 0, "NormRouter: scale_scores by ", factor, ", expected a positive factor");
  check(activation == ops::Activation::abs || activation == ops::Activation::relu ||
            activation == ops::Activation::identity,
        "NormRouter: scores behind ", ops::name_of(activation), " cannot be scaled, expected abs, relu or identity");
  for (const nn::NamedParameter& parameter : layers_.back()->named_parameters()) {
    const Tensor& values = parameter.variable.data();
    values.copy_from(ops::affine(values, factor));
  }
}

}  // namespace switchyard::moe
