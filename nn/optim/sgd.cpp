#include "nn/optim/sgd.h"

#include "core/ops/optim.h"

namespace switchyard::nn {

Sgd::Sgd(const std::vector<ParameterGroup>& groups, const SgdOptions& options)
    : Optimizer(groups, options.learning_rate), options_(options) {
  check(options.momentum >= 0 && options.momentum < 1, "Sgd: momentum ", options.momentum, ", expected 0 <= m < 1");
  for (const Group& group : groups_) {
    std::vector<Tensor> momenta;
    for (const Entry& entry : group.entries)
      momenta.push_back(options.momentum > 0 ? make_state(entry, "momentum") : Tensor{});
    momenta_.push_back(std::move(momenta));
  }
}

void Sgd::update(std::size_t index, const Tensor& gradient_scale) {
  const Group& group = groups_[index];
  std::vector<ops::SgdSlot> slots;
  for (std::size_t i = 0; i < group.entries.size(); ++i) {
    const Entry& entry = group.entries[i];
    if (!entry.variable.grad().defined()) continue;
    slots.push_back(
        {entry.variable.data(), entry.variable.grad(), momenta_[index][i], entry.master, group.weight_decay});
  }
  if (slots.empty()) return;
  ops::sgd(slots, group.learning_rate, gradient_scale, options_.momentum);
}

}  // namespace switchyard::nn
