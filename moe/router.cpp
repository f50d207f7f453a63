#include "moe/router.h"

#include <cmath>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/routing.h"
#include "autograd/ops/shape.h"
#include "core/ops/norm.h"
#include "core/ops/random.h"
#include "core/ops/reduce.h"
#include "core/ops/softmax.h"

namespace switchyard::moe {
namespace {

Tensor equal_norm_rows(std::int64_t rows, std::int64_t width, double norm, Generator& generator) {
  const Tensor weight = nn::init::normal(1)({rows, width}, generator);
  const Tensor norms = ops::unary(ops::Unary::sqrt, ops::sum(ops::multiply(weight, weight), {-1}, true));
  return ops::affine(ops::divide(weight, norms), norm);
}

const RouterOptions& checked(const RouterOptions& options) {
  check(options.width >= 1, "Router: width is ", options.width, ", expected at least 1");
  check(options.slots >= 1, "Router: slots is ", options.slots, ", expected at least 1");
  check(options.experts >= 1, "Router: experts is ", options.experts, ", expected at least 1");
  check(options.k >= 1 && options.k <= options.experts, "Router: k is ", options.k, ", expected 1 to the ",
        options.experts, " experts");
  check(options.sinkhorn_rounds >= 1, "Router: sinkhorn_rounds is ", options.sinkhorn_rounds, ", expected at least 1");
  check(options.expert_dropout >= 0 && options.expert_dropout < 1, "Router: expert_dropout is ", options.expert_dropout,
        ", expected 0 or more and below 1");
  return options;
}

ops::GateFunction gate_function(SelectionKind selection) {
  switch (selection) {
    case SelectionKind::softmax: return ops::GateFunction::softmax;
    case SelectionKind::softmax_after_topk: return ops::GateFunction::softmax_of_chosen;
    case SelectionKind::sigmoid:
    case SelectionKind::sinkmoid: return ops::GateFunction::sigmoid;
  }
  fail("Router: unknown selection ", static_cast<int>(selection));
}

}  // namespace

Tensor sinkhorn_offsets(const Tensor& scores, std::int64_t rounds) {
  check(scores.rank() == 4, "sinkhorn_offsets: scores must be [B, T, H, E], got ", scores.shape());
  const double log_tokens = std::log(static_cast<double>(scores.size(1)));
  const double log_experts = std::log(static_cast<double>(scores.size(3)));
  const Tensor by_expert = scores.permute({0, 2, 3, 1});  // [B, H, E, T]
  Tensor a = Tensor::zeros({scores.size(0), 1, scores.size(2), scores.size(3)}, scores.dtype(), scores.device());
  for (std::int64_t round = 0; round < rounds; ++round) {
    const Tensor b = ops::affine(ops::logsumexp(ops::subtract(scores, a)), -1, log_tokens);  // [B, T, H]
    const Tensor balanced = ops::subtract(by_expert, b.permute({0, 2, 1}).unsqueeze(2));
    a = ops::affine(ops::logsumexp(balanced), -1, log_experts).unsqueeze(1);  // [B, 1, H, E]
  }
  return a;
}

Router::Router(const RouterOptions& options, Generator& generator) : options_(checked(options)) {
  weight_ = register_parameter(
      "weight", equal_norm_rows(options.slots * options.experts, options.width, options.init_scale, generator));
}

Routing Router::route(const Variable& tokens) {
  check(tokens.rank() == 3 && tokens.size(2) == options_.width, "Router: tokens must be [B, T, ", options_.width,
        "], got ", tokens.shape());
  const NameScope scope("router");
  const DType compute = ops::compute_dtype(tokens.dtype());
  const std::int64_t rows = tokens.size(0) * tokens.size(1);
  Routing routing;
  routing.scores = reshape(linear(tokens, weight_, {}, compute), {rows, options_.slots, options_.experts});
  routing.indices = choose(routing.scores.data(), tokens.size(0));
  routing.gates = expert_gates(routing.scores, routing.indices, gate_function(options_.selection), tokens.dtype());
  routing.plan = ops::routing_plan(routing.indices, options_.experts);
  if (options_.entropy_regularizer != 0 && rows > 0)
    routing.regularizer = negative_selection_entropy(routing.scores) * options_.entropy_regularizer;
  if (collect_ != Collect::nothing && (!training() || grad_enabled())) {
    statistics_.add(routing.plan);
    if (collect_ == Collect::together) statistics_.add_together(routing.indices, options_.experts);
  }
  return routing;
}

Tensor Router::choose(const Tensor& scores, std::int64_t batch) const {
  Tensor ranked = scores;
  if (training() && options_.selection == SelectionKind::sinkmoid && scores.numel() > 0) {
    const Tensor sequences = scores.view({batch, -1, options_.slots, options_.experts});
    const Tensor offsets = sinkhorn_offsets(sequences, options_.sinkhorn_rounds);
    ranked = ops::add(sequences, offsets).view(scores.shape());
  }
  Tensor excluded;
  if (training() && options_.expert_dropout > 0) {
    const RandomStream stream = default_generator(scores.device()).next(scores.numel());
    excluded = ops::bernoulli(scores.shape(), stream, options_.expert_dropout);
  }
  return ops::top_k(ranked, options_.k, excluded);
}

void Router::collect(Collect what) {
  collect_ = what;
  statistics_.reset();
}

}  // namespace switchyard::moe
