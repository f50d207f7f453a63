#include "moe/sigma_moe.h"

#include <cmath>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/expert_matmul.h"
#include "autograd/ops/shape.h"

namespace switchyard::moe {
namespace {

SigmaMoeOptions completed(SigmaMoeOptions options) {
  check(options.expert_width >= 1, "SigmaMoe: expert_width is ", options.expert_width, ", expected at least 1");
  check(options.output_width >= 0, "SigmaMoe: output_width is ", options.output_width, ", expected 0 or more");
  if (options.output_width == 0) options.output_width = options.width;
  return options;
}

RouterOptions options_of_router(const SigmaMoeOptions& options) {
  RouterOptions router = router_options(options);
  router.sinkhorn_rounds = options.sinkhorn_rounds;
  return router;
}

double deviation(double scale, std::int64_t inputs) { return scale / std::sqrt(static_cast<double>(inputs)); }

}  // namespace

SigmaMoe::SigmaMoe(const SigmaMoeOptions& options, Generator& generator)
    : options_(completed(options)), router_(options_of_router(options), generator) {
  const std::int64_t experts = options_.experts, width = options_.width, expert_width = options_.expert_width;
  const nn::Initializer keys = nn::init::normal(deviation(options_.init_scale, width));
  const nn::Initializer values = nn::init::normal(deviation(options_.init_scale, experts * expert_width));
  register_module("router", router_);
  keys_ = register_parameter("keys", keys({experts, width, expert_width}, generator));
  values_ = register_parameter("values", values({experts, expert_width, options_.output_width}, generator));
  if (!options_.bias) return;
  bias_ = register_parameter("bias", Tensor::zeros({experts, expert_width}), false);
  output_bias_ = register_parameter("output_bias", Tensor::zeros({options_.output_width}), false);
}

nn::LayerOutput SigmaMoe::forward(const Variable& x) {
  check(x.rank() == 3 && x.size(2) == options_.width, "SigmaMoe: x must be [B, T, ", options_.width, "], got ",
        x.shape());
  const Routing routing = router_.route(x);
  const Variable rows = reshape(x, {x.size(0) * x.size(1), options_.width});
  Variable y = expert_feed_forward(rows, keys_, bias_, values_, routing.gates, routing.plan, options_.activation);
  if (output_bias_.defined()) y = y + output_bias_;
  return {reshape(y, {x.size(0), x.size(1), options_.output_width}), routing.regularizer};
}

}  // namespace switchyard::moe
