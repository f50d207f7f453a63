#include "moe/switch_head.h"

#include <algorithm>
#include <cmath>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/expert_matmul.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/shape.h"
#include "core/ops/norm.h"

namespace switchyard::moe {
namespace {

SwitchHeadOptions completed(SwitchHeadOptions options) {
  check(options.width >= 1, "SwitchHead: width is ", options.width, ", expected at least 1");
  check(options.heads >= 1, "SwitchHead: heads is ", options.heads, ", expected at least 1");
  check(options.head_width > 0 || (options.head_width == 0 && options.width % options.heads == 0),
        "SwitchHead: head_width is ", options.head_width,
        ", expected at least 1, or 0 with heads that divide the width ", options.width);
  check(options.experts >= 1, "SwitchHead: experts is ", options.experts, ", expected at least 1");
  check(options.selection == SelectionKind::sigmoid || options.selection == SelectionKind::softmax,
        "SwitchHead: selection is ", name_of(options.selection), ", expected sigmoid or softmax");
  if (options.head_width == 0) options.head_width = options.width / options.heads;
  return options;
}

bool listed(const SwitchHeadOptions& options, ProjectionKind kind) {
  return std::find(options.experts_on.begin(), options.experts_on.end(), kind) != options.experts_on.end();
}

RouterOptions options_of_router(const SwitchHeadOptions& options) {
  RouterOptions router = router_options(options);
  router.slots = options.heads;
  return router;
}

}  // namespace

HeadProjection::HeadProjection(ProjectionKind kind, const SwitchHeadOptions& options, Generator& generator)
    : is_output_(kind == ProjectionKind::output), heads_(options.heads) {
  const std::int64_t all_heads = options.heads * options.head_width;
  const std::int64_t inputs = is_output_ ? all_heads : options.width;
  const std::int64_t outputs = is_output_ ? options.width : all_heads;
  const nn::Initializer init = nn::init::normal(options.init_scale / std::sqrt(static_cast<double>(inputs)));
  const bool experts = options.experts > 1 && listed(options, kind);
  const std::int64_t count = options.heads * options.experts;
  const Shape of_experts =
      is_output_ ? Shape{count, options.head_width, options.width} : Shape{count, options.width, options.head_width};
  weight_ = register_parameter("weight", init(experts ? of_experts : Shape{outputs, inputs}, generator));
}

Variable HeadProjection::forward(const Variable& source, const Routing& routing) const {
  using ops::Activation, ops::Rows;
  const std::int64_t batch = source.size(0), length = source.size(1);
  if (is_output_) {
    if (!has_experts()) return linear(reshape(source, {batch, length, -1}), weight_);
    const Variable rows = reshape(source, {batch * length * heads_, source.size(3)});
    const Variable y =
        expert_matmul(rows, weight_, {}, routing.gates, routing.plan, {Rows::row, Rows::token, Activation::identity});
    return reshape(y, {batch, length, y.size(1)});
  }
  if (!has_experts()) return reshape(linear(source, weight_), {batch, length, heads_, weight_.size(0) / heads_});
  const Variable rows = reshape(source, {batch * length, source.size(2)});
  const Variable y =
      expert_matmul(rows, weight_, {}, routing.gates, routing.plan, {Rows::token, Rows::row, Activation::identity});
  return reshape(y, {batch, length, heads_, y.size(1)});
}

/// One call of the layer: routes each source once per router, and gathers regularisers and read-outs.
class SwitchHead::Pass {
 public:
  Pass(const SwitchHead& layer, nn::AttentionInspection* inspection) : layer_(layer), inspection_(inspection) {
    if (inspection_) inspection_->selections.clear();
  }

  /// Projects `source`; tokens of `selector` [B, S, D] choose the experts.
  Variable project(ProjectionKind kind, const Variable& source, const Variable& selector) {
    choose(kind, selector);
    const HeadProjection& projection = projection_of(kind);
    const NameScope scope(nn::sublayer_name(kind));
    if (!projection.has_experts()) return projection.forward(source, {});
    const Routing& routing = routings_[static_cast<std::size_t>(kind)];
    if (inspection_) record(kind, routing, selector);
    return projection.forward(source, routing);
  }

  /// Routes the tokens of `selector` for a projection, if it has experts and that has not been done yet.
  void choose(ProjectionKind kind, const Variable& selector) {
    Routing& routing = routings_[static_cast<std::size_t>(kind)];
    if (!projection_of(kind).has_experts() || routing.indices.defined()) return;
    const NameScope scope(nn::sublayer_name(kind));
    Router* own = layer_.routers_[static_cast<std::size_t>(kind)].get();
    if (!own && shared_.indices.defined() && shared_selector_.state() == selector.state()) {
      routing = shared_;
      return;
    }
    routing = own ? own->route(selector) : layer_.shared_router_->route(selector);
    if (routing.regularizer.defined())
      regularizer_ = regularizer_.defined() ? regularizer_ + routing.regularizer : routing.regularizer;
    if (own) return;
    shared_ = routing;
    shared_selector_ = selector;
  }

  const Variable& regularizer() const { return regularizer_; }

 private:
  const HeadProjection& projection_of(ProjectionKind kind) const {
    return *layer_.projections_[static_cast<std::size_t>(kind)];
  }

  void record(ProjectionKind kind, const Routing& routing, const Variable& selector) {
    const RouterOptions& router = layer_.routers_[static_cast<std::size_t>(kind)]
                                      ? layer_.routers_[static_cast<std::size_t>(kind)]->options()
                                      : layer_.shared_router_->options();
    const Shape shape = {selector.size(0), selector.size(1), router.slots, router.k};
    inspection_->selections.push_back(
        {nn::sublayer_name(kind), routing.indices.view(shape), routing.gates.data().view(shape)});
  }

  const SwitchHead& layer_;
  nn::AttentionInspection* inspection_;
  std::array<Routing, 4> routings_;  // by ProjectionKind
  Routing shared_;                   // the shared router's last
  Variable shared_selector_;
  Variable regularizer_;
};

SwitchHead::SwitchHead(const SwitchHeadOptions& options, Generator& generator)
    : options_(completed(options)),
      core_(options_.position, options_.width, options_.heads, options_.head_width, options_.dropout,
            nn::init::fan_in_normal(options_.init_scale), generator) {
  for (const ProjectionKind kind : nn::kProjectionKinds) {
    const auto at = static_cast<std::size_t>(kind);
    projections_[at] = std::make_unique<HeadProjection>(kind, options_, generator);
    register_module(nn::sublayer_name(kind), *projections_[at]);
    if (!projections_[at]->has_experts()) continue;
    std::unique_ptr<Router>& router = options_.shared_selection ? shared_router_ : routers_[at];
    if (router) continue;
    router = std::make_unique<Router>(options_of_router(options_), generator);
    register_module(options_.shared_selection ? "router" : nn::sublayer_name(kind) + "_router", *router);
  }
  if (options_.experts == 1) {
    const nn::Initializer init = nn::init::fan_in_normal(options_.init_scale);
    output_gate_ = register_parameter("output_gate", init({options_.heads, options_.width}, generator));
  }
  register_module("", core_);
}

nn::LayerOutput SwitchHead::forward(const Variable& x, const nn::AttentionArguments& arguments) {
  check(x.rank() == 3 && x.size(2) == options_.width, "SwitchHead: x must be [B, T, ", options_.width, "], got ",
        x.shape());
  const Variable& key_source = arguments.key_source.defined() ? arguments.key_source : x;
  const Variable& value_source = arguments.value_source.defined() ? arguments.value_source : key_source;
  Pass pass(*this, arguments.inspection);
  const Variable query = pass.project(ProjectionKind::query, x, x);
  const Variable key = pass.project(ProjectionKind::key, key_source, key_source);
  // Routing first: the value projection is then the first to send a gradient back, and the products of routers, keys
  // and queries add theirs to it.
  pass.choose(ProjectionKind::value, key_source);
  pass.choose(ProjectionKind::output, x);
  const Variable value = pass.project(ProjectionKind::value, value_source, key_source);
  Variable attended = core_.forward(query, key, value, arguments);
  if (output_gate_.defined()) {
    const DType compute = ops::compute_dtype(x.dtype());
    const Variable gate = cast(sigmoid(linear(x, output_gate_, {}, compute)), x.dtype());
    attended = attended * reshape(gate, {x.size(0), x.size(1), options_.heads, 1});
  }
  const Variable output = pass.project(ProjectionKind::output, attended, x);
  return {output, pass.regularizer()};
}

}  // namespace switchyard::moe
