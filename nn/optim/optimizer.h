#pragma once

#include <utility>

#include "nn/module.h"

namespace switchyard::nn {

/// Parameters treated alike by an optimiser.
struct ParameterGroup {
  std::vector<NamedParameter> parameters;
  double weight_decay = 0;
  double learning_rate_factor = 1;  ///< of the optimiser's learning rate
};

/// Two groups: what decays and what does not (norms and biases, unless decay_all). Empty groups are left out.
std::vector<ParameterGroup> parameter_groups(const std::vector<NamedParameter>& parameters, double weight_decay,
                                             bool decay_all = false);

/// Base of the optimisers. Build it when the model is on its device and in its dtype. Parameters in bf16 are updated
/// through a copy in f32, which is part of the state.
///
/// Learning rate and step number live on the device, where the update reads them: nothing waits for the host.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// Updates every parameter that has a gradient. `gradient_scale` f64 [1] multiplies all gradients (from
  /// clip_gradients, say); undefined means 1.
  void step(const Tensor& gradient_scale = {});
  void zero_grad() const;

  void set_learning_rate(double rate);
  double learning_rate() const { return learning_rate_; }

  /// The live tensors of the state, by name ("step", "<parameter>.first_moment", ...): save them, or copy saved ones
  /// over them to continue exactly.
  std::vector<std::pair<std::string, Tensor>> state_tensors() const { return state_; }
  /// Reads the f32 copies of bf16 parameters again, after weights were loaded without an optimiser state.
  void refresh_masters() const;

 protected:
  struct Entry {
    Variable variable;
    std::string name;
    Tensor master;  // f32 copy of a bf16 parameter; else undefined
  };
  struct Group {
    std::vector<Entry> entries;
    double weight_decay = 0, learning_rate_factor = 1;
    Tensor learning_rate;  // f64 [1]
  };

  Optimizer(const std::vector<ParameterGroup>& groups, double learning_rate);
  /// One update of one group; step_ is already that of this update.
  virtual void update(std::size_t group, const Tensor& gradient_scale) = 0;
  /// A zero tensor of the entry's shape in the dtype of the state, registered as "<parameter>.<what>".
  Tensor make_state(const Entry& entry, const char* what);

  std::vector<Group> groups_;
  Tensor step_;  // i64 [1]

 private:
  std::vector<std::pair<std::string, Tensor>> state_;
  double learning_rate_;
};

}  // namespace switchyard::nn
