#include "nn/optim/optimizer.h"

#include <set>

#include "core/ops/elementwise.h"
#include "core/ops/norm.h"

namespace switchyard::nn {

std::vector<ParameterGroup> parameter_groups(const std::vector<NamedParameter>& parameters, double weight_decay,
                                             bool decay_all) {
  ParameterGroup decaying{{}, weight_decay, 1}, exempt{{}, 0, 1};
  for (const NamedParameter& p : parameters) (p.decays || decay_all ? decaying : exempt).parameters.push_back(p);
  std::vector<ParameterGroup> groups;
  if (!decaying.parameters.empty()) groups.push_back(std::move(decaying));
  if (!exempt.parameters.empty()) groups.push_back(std::move(exempt));
  return groups;
}

Optimizer::Optimizer(const std::vector<ParameterGroup>& groups, double learning_rate) : learning_rate_(learning_rate) {
  check(!groups.empty() && !groups[0].parameters.empty(), "optimizer: no parameters");
  const Device device = groups[0].parameters[0].variable.device();
  step_ = Tensor::zeros({1}, DType::i64, device);
  state_.emplace_back("step", step_);
  std::set<std::string> names;
  for (const ParameterGroup& given : groups) {
    check(given.weight_decay >= 0, "optimizer: weight decay ", given.weight_decay, " is negative");
    Group group{{}, given.weight_decay, given.learning_rate_factor, Tensor::zeros({1}, DType::f64, device)};
    for (const NamedParameter& p : given.parameters) {
      check(names.insert(p.name).second, "optimizer: parameter \"", p.name, "\" is given twice");
      check(p.variable.requires_grad(), "optimizer: parameter \"", p.name, "\" does not require a gradient");
      Entry entry{p.variable, p.name, {}};
      if (p.variable.dtype() == DType::bf16) {
        entry.master = make_state(entry, "master");
        entry.master.copy_from(p.variable.data());
      }
      group.entries.push_back(std::move(entry));
    }
    groups_.push_back(std::move(group));
  }
  set_learning_rate(learning_rate);
}

Tensor Optimizer::make_state(const Entry& entry, const char* what) {
  const Variable& v = entry.variable;
  Tensor state = Tensor::zeros(v.shape(), ops::compute_dtype(v.dtype()), v.device());
  state_.emplace_back(entry.name + "." + what, state);
  return state;
}

void Optimizer::step(const Tensor& gradient_scale) {
  ops::accumulate(step_, Tensor::ones({1}, DType::i64, step_.device()));
  for (std::size_t i = 0; i < groups_.size(); ++i) update(i, gradient_scale);
}

void Optimizer::zero_grad() const {
  for (const Group& group : groups_)
    for (const Entry& entry : group.entries) entry.variable.zero_grad();
}

void Optimizer::set_learning_rate(double rate) {
  check(rate >= 0, "optimizer: learning rate ", rate, ", expected 0 or more");
  learning_rate_ = rate;
  for (const Group& group : groups_) group.learning_rate.fill(rate * group.learning_rate_factor);
}

void Optimizer::refresh_masters() const {
  for (const Group& group : groups_)
    for (const Entry& entry : group.entries)
      if (entry.master.defined()) entry.master.copy_from(entry.variable.data());
}

}  // namespace switchyard::nn
