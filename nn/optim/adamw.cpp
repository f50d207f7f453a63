#include "nn/optim/adamw.h"

#include "core/ops/optim.h"

namespace switchyard::nn {

AdamW::AdamW(const std::vector<ParameterGroup>& groups, const AdamWOptions& options)
    : Optimizer(groups, options.learning_rate), options_(options) {
  check(options.beta1 >= 0 && options.beta1 < 1 && options.beta2 >= 0 && options.beta2 < 1, "AdamW: betas ",
        options.beta1, " and ", options.beta2, ", expected 0 <= beta < 1");
  check(options.epsilon >= 0, "AdamW: epsilon ", options.epsilon, " is negative");
  for (const Group& group : groups_) {
    std::vector<Moments> moments;
    for (const Entry& entry : group.entries) {
      const Tensor first = make_state(entry, "first_moment");
      moments.push_back({first, make_state(entry, "second_moment")});
    }
    moments_.push_back(std::move(moments));
  }
}

void AdamW::update(std::size_t index, const Tensor& gradient_scale) {
  const Group& group = groups_[index];
  std::vector<ops::AdamWSlot> slots;
  for (std::size_t i = 0; i < group.entries.size(); ++i) {
    const Entry& entry = group.entries[i];
    if (!entry.variable.grad().defined()) continue;
    const Moments& moments = moments_[index][i];
    slots.push_back({entry.variable.data(), entry.variable.grad(), moments.first, moments.second, entry.master,
                     group.weight_decay});
  }
  if (slots.empty()) return;
  ops::adamw(slots, group.learning_rate, step_, gradient_scale, options_.beta1, options_.beta2, options_.epsilon);
}

}  // namespace switchyard::nn
