#include <algorithm>
#include <atomic>
#include <map>
#include <optional>

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

/// A gradient under construction. It grows in place in the first term that others cannot see: a term may be what
/// another op saved, or part of other gradients.
class Sum {
 public:
  void add(Tensor term) {
    if (value_.defined() && is_exclusive(term)) std::swap(value_, term);
    if (!value_.defined()) value_ = std::move(term);
    else if (is_exclusive(value_)) ops::accumulate(value_, term);
    else value_ = ops::add(value_, term);
  }
  /// The sum so far if it may be written to, else undefined.
  Tensor writable() const { return value_.defined() && is_exclusive(value_) ? value_ : Tensor{}; }
  Tensor take() { return std::move(value_); }

 private:
  Tensor value_;
};

bool same_memory(const Tensor& a, const Tensor& b) {
  return a.defined() && b.defined() && a.storage() == b.storage() && a.raw() == b.raw();
}

void add_to_leaf(VariableState& leaf, Tensor gradient) {
  if (leaf.grad.defined()) {
    ops::accumulate(leaf.grad, gradient);
    return;
  }
  leaf.grad = is_exclusive(gradient) ? std::move(gradient) : gradient.clone();
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
    const auto backward = std::move(node.backward);
    node.backward = nullptr;
    const std::vector<Edge> inputs = std::move(node.inputs);
    std::optional<NameScope> scope;
    if (!node.scope.empty()) scope.emplace(node.scope);
    Gradients sums_so_far;
    for (const Edge& input : inputs) sums_so_far.push_back(writable_sum(input));
    Gradients outgoing = backward(incoming, sums_so_far);
    check(outgoing.size() == inputs.size(), "backward: op '", node.name, "' has ", inputs.size(),
          " inputs but returned ", outgoing.size(), " gradients");
    if (anomaly_enabled())
      for (const Tensor& gradient : outgoing) check_finite(gradient, "a gradient", node.name, node.scope);
    for (std::size_t i = 0; i < inputs.size(); ++i)
      if (same_memory(outgoing[i], sums_so_far[i])) outgoing[i] = {};  // has been added
    sums_so_far.clear();  // a handle kept here would keep others from adding in place
    for (std::size_t i = 0; i < inputs.size(); ++i)
      if (outgoing[i].defined()) send(inputs[i], std::move(outgoing[i]), node.name);
  }

  /// What has been contributed to the gradient that an edge leads to, if it may be added to in place.
  Tensor writable_sum(const Edge& edge) const {
    if (edge.leaf) return edge.leaf->grad.defined() && edge.leaf->grad.is_contiguous() ? edge.leaf->grad : Tensor{};
    if (!edge.node) return {};
    const auto found = pending_.find(edge.node->sequence);
    return found == pending_.end() ? Tensor{} : found->second.sums[static_cast<std::size_t>(edge.output)].writable();
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
      pending.sums[edge.output].add(std::move(gradient));
    }
  }

  std::map<std::uint64_t, Pending> pending_;
};

}  // namespace

bool is_exclusive(const Tensor& gradient) { return gradient.storage().use_count() == 1 && gradient.is_contiguous(); }

namespace {

Variables record_node(const char* name, std::vector<Tensor> outputs, const Variables& inputs,
                      decltype(Node::backward) backward, bool always) {
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
  node->scope = NameScope::current();
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

}  // namespace

Variables record_many(const char* name, std::vector<Tensor> outputs, const Variables& inputs, BackwardFunction backward,
                      bool always) {
  return record_node(
      name, std::move(outputs), inputs,
      [backward = std::move(backward)](const Gradients& dy, const Gradients&) { return backward(dy); }, always);
}

Variable record(const char* name, Tensor output, const Variables& inputs, BackwardFunction1 backward) {
  return record_many(name, {std::move(output)}, inputs,
                     [backward = std::move(backward)](const Gradients& dy) { return backward(dy[0]); })[0];
}

Variable record(const char* name, Tensor output, const Variables& inputs, AddingBackward1 backward) {
  return record_node(
      name, {std::move(output)}, inputs,
      [backward = std::move(backward)](const Gradients& dy, const Gradients& sums) { return backward(dy[0], sums); },
      false)[0];
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
