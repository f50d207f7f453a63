#include <algorithm>
#include <atomic>
#include <map>

#include "autograd/grad_mode.h"
#include "autograd/node.h"
#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"

namespace switchyard {

Variable variable_from_node(Tensor data, std::shared_ptr<Node> node, int output);

namespace {

std::atomic<std::uint64_t> next_sequence{0};

void check_finite(const Tensor& tensor, const char* what, const char* op, const std::string& scope) {
  if (!tensor.defined() || !is_floating(tensor.dtype())) return;
  const auto bad = ops::count_nonfinite(tensor).item<std::int64_t>();
  check(bad == 0, "anomaly: ", what, " of op '", op, "'", scope.empty() ? "" : " in " + scope, " has ", bad,
        " NaN or infinite values of ", tensor.numel(), ", shape ", tensor.shape());
}

/// A gradient under construction. The first contribution is kept as it is, because it may share memory with other
/// gradients; from the second on the sum is ours and grows in place.
class Sum {
 public:
  void add(const Tensor& term) {
    if (!value_.defined()) {
      value_ = term;
    } else if (!owned_) {
      value_ = ops::add(value_, term);
      owned_ = true;
    } else {
      ops::accumulate(value_, term);
    }
  }
  Tensor take() { return std::move(value_); }

 private:
  Tensor value_;
  bool owned_ = false;
};

void add_to_leaf(VariableState& leaf, Tensor gradient) {
  if (leaf.grad.defined()) {
    ops::accumulate(leaf.grad, gradient);
    return;
  }
  // The gradient becomes the leaf's own only if nobody else can see its memory.
  const bool shared = gradient.storage().use_count() > 1 || !gradient.is_contiguous();
  leaf.grad = shared ? gradient.clone() : std::move(gradient);
}

class Pass {
 public:
  void seed(const Variable& root, Tensor seed) {
    check(root.requires_grad(), "backward: the variable does not depend on any that requires a gradient");
    if (!seed.defined()) {
      check(root.numel() == 1, "backward: a variable of shape ", root.shape(), " needs a seed of the same shape");
      seed = Tensor::ones(root.shape(), root.dtype(), root.device());
    }
    check(seed.shape() == root.shape(), "backward: seed ", seed.shape(), " for a variable of shape ", root.shape());
    const auto& state = root.state();
    send(Edge{state->node, state->output, state->node ? nullptr : state}, std::move(seed), "seed");
  }

  void run() {
    // Sequence numbers are a topological order: when a node is the largest left, nothing can still add to it.
    while (!pending_.empty()) {
      const auto last = std::prev(pending_.end());
      const std::shared_ptr<Node> node = last->second.node;
      std::vector<Sum> sums = std::move(last->second.sums);
      pending_.erase(last);
      visit(*node, sums);
    }
  }

 private:
  struct Pending {
    std::shared_ptr<Node> node;
    std::vector<Sum> sums;
  };

  void visit(Node& node, std::vector<Sum>& sums) {
    check(static_cast<bool>(node.backward), "backward: the graph was freed by an earlier backward, at op '", node.name,
          "'; run the forward pass again");
    Gradients incoming;
    for (std::size_t i = 0; i < sums.size(); ++i) {
      incoming.push_back(sums[i].take());
      const Node::OutputSpec& spec = node.outputs[i];
      if (!incoming.back().defined()) incoming.back() = Tensor::zeros(spec.shape, spec.dtype, spec.device);
    }
    const BackwardFunction backward = std::move(node.backward);
    node.backward = nullptr;
    const std::vector<Edge> inputs = std::move(node.inputs);
    Gradients outgoing = backward(incoming);
    check(outgoing.size() == inputs.size(), "backward: op '", node.name, "' has ", inputs.size(),
          " inputs but returned ", outgoing.size(), " gradients");
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!outgoing[i].defined()) continue;
      if (anomaly_enabled()) check_finite(outgoing[i], "a gradient", node.name, node.scope);
      send(inputs[i], std::move(outgoing[i]), node.name);
    }
  }

  void send(const Edge& edge, Tensor gradient, const char* from) {
    if (edge.leaf) {
      check(gradient.shape() == edge.leaf->data.shape(), "backward: op '", from, "' returned a gradient of shape ",
            gradient.shape(), " for a leaf of shape ", edge.leaf->data.shape());
      add_to_leaf(*edge.leaf, std::move(gradient));
    } else if (edge.node) {
      const Shape& expected = edge.node->outputs[edge.output].shape;
      check(gradient.shape() == expected, "backward: op '", from, "' returned a gradient of shape ", gradient.shape(),
            " for an input of shape ", expected, " made by op '", edge.node->name, "'");
      Pending& pending = pending_[edge.node->sequence];
      if (!pending.node) pending = {edge.node, std::vector<Sum>(edge.node->outputs.size())};
      pending.sums[edge.output].add(gradient);
    }
  }

  std::map<std::uint64_t, Pending> pending_;
};

}  // namespace

Variables record_many(const char* name, std::vector<Tensor> outputs, const Variables& inputs, BackwardFunction backward,
                      bool always) {
  if (anomaly_enabled())
    for (const Tensor& output : outputs) check_finite(output, "the result", name, NameScope::current());
  const bool wanted = grad_enabled() && (always || std::any_of(inputs.begin(), inputs.end(),
                                                               [](const Variable& v) { return v.requires_grad(); }));
  Variables results;
  if (!wanted) {
    for (Tensor& output : outputs) results.emplace_back(std::move(output));
    return results;
  }
  auto node = std::make_shared<Node>();
  node->name = name;
  if (anomaly_enabled()) node->scope = NameScope::current();
  node->sequence = next_sequence.fetch_add(1);
  node->backward = std::move(backward);
  for (const Variable& input : inputs) {
    if (!input.requires_grad()) node->inputs.emplace_back();
    else if (input.state()->node) node->inputs.push_back({input.state()->node, input.state()->output, nullptr});
    else node->inputs.push_back({nullptr, 0, input.state()});
  }
  for (Tensor& output : outputs) {
    node->outputs.push_back({output.shape(), output.dtype(), output.device()});
    const int index = static_cast<int>(results.size());
    results.push_back(is_floating(output.dtype()) ? variable_from_node(std::move(output), node, index)
                                                  : Variable(std::move(output)));
  }
  return results;
}

Variable record(const char* name, Tensor output, const Variables& inputs, BackwardFunction1 backward) {
  return record_many(name, {std::move(output)}, inputs,
                     [backward = std::move(backward)](const Gradients& dy) { return backward(dy[0]); })[0];
}

Variables apply_op(const std::shared_ptr<CustomOp>& op, const Variables& inputs) {
  std::vector<Tensor> data;
  for (const Variable& input : inputs) data.push_back(input.data());
  std::vector<Tensor> outputs = op->forward(data);
  return record_many(op->name(), std::move(outputs), inputs, [op](const Gradients& dy) { return op->backward(dy); });
}

void backward(const Variables& roots, const std::vector<Tensor>& seeds) {
  check(roots.size() == seeds.size(), "backward: ", roots.size(), " variables but ", seeds.size(), " seeds");
  NoGradGuard no_grad;
  Pass pass;
  for (std::size_t i = 0; i < roots.size(); ++i) pass.seed(roots[i], seeds[i]);
  pass.run();
}

}  // namespace switchyard
