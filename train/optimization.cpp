#include "train/optimization.h"

#include "core/error.h"
#include "nn/optim/adamw.h"
#include "nn/optim/sgd.h"

namespace switchyard::train {

std::unique_ptr<nn::Optimizer> build_optimizer(const OptimizerConfig& config,
                                               const std::vector<nn::NamedParameter>& parameters) {
  const auto groups = nn::parameter_groups(parameters, config.weight_decay, config.decay_all);
  if (config.kind == OptimizerKind::sgd)
    return std::make_unique<nn::Sgd>(groups, nn::SgdOptions{config.learning_rate, config.momentum});
  return std::make_unique<nn::AdamW>(
      groups, nn::AdamWOptions{config.learning_rate, config.beta1, config.beta2, config.epsilon});
}

nn::Schedule build_schedule(const ScheduleConfig& config, std::int64_t steps) {
  switch (config.kind) {
    case ScheduleKind::constant: return nn::schedule::constant(config.warmup_steps);
    case ScheduleKind::linear: return nn::schedule::linear(config.warmup_steps, steps, config.final_fraction);
    case ScheduleKind::cosine: return nn::schedule::cosine(config.warmup_steps, steps, config.final_fraction);
    case ScheduleKind::switchhead_warmup_then_cosine:
      return nn::schedule::switchhead_warmup_then_cosine(config.warmup_steps, steps);
  }
  fail("config: optimizer.schedule.kind: unknown");
}

}  // namespace switchyard::train
