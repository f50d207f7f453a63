#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "autograd/variable.h"

namespace switchyard::nn {

/// A parameter with its path in the model, such as "layers.3.attention.query.weight".
struct NamedParameter {
  std::string name;
  Variable variable;
  bool decays = true;  ///< false for norms and biases: weight decay leaves them alone
};

/// A tensor that is part of a module's state but not trained.
struct NamedBuffer {
  std::string name;
  Tensor tensor;
};

/// Base of everything that holds parameters. A layer registers its parameters, buffers and sublayers in its
/// constructor; it may then be asked for all of them, switched between training and evaluation, or moved.
/// Modules stay where they are built: they are neither copied nor moved.
class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  /// All parameters of this module and its sublayers, in registration order.
  std::vector<NamedParameter> named_parameters() const;
  std::vector<NamedBuffer> named_buffers() const;
  /// This module and everything below it, parents first, with their paths ("" for this one).
  std::vector<std::pair<std::string, Module*>> named_modules();
  /// Those of named_modules() that are a `Layer`.
  template <class Layer>
  std::vector<std::pair<std::string, Layer*>> named_modules_of() {
    std::vector<std::pair<std::string, Layer*>> layers;
    for (const auto& [name, module] : named_modules())
      if (auto* layer = dynamic_cast<Layer*>(module)) layers.emplace_back(name, layer);
    return layers;
  }
  Variables parameters() const;
  /// Number of trained values.
  std::int64_t parameter_count() const;

  /// Training mode (the default) or evaluation: dropout and the like follow it. Covers all sublayers.
  void train(bool on = true);
  void eval() { train(false); }
  bool training() const { return training_; }

  /// Moves or converts all parameters and floating buffers; gradients are dropped. Handles from parameters() stay
  /// valid.
  void to(Device device);
  void to(DType dtype);
  void zero_grad() const;

 protected:
  /// Makes `initial` a trained parameter, on the default device.
  Variable register_parameter(std::string name, const Tensor& initial, bool decays = true);
  /// The buffer is the member `tensor` itself, which must live as long as the module.
  void register_buffer(std::string name, Tensor& tensor);
  /// The sublayer's parameters get `name` in their path; an empty name adds nothing to it.
  void register_module(std::string name, Module& module);
  /// Another sublayer takes the place, and the name, of the one registered as `name`.
  void replace_module(std::string_view name, Module& module);

 private:
  void collect(const std::string& prefix, std::vector<NamedParameter>& out) const;
  void collect(const std::string& prefix, std::vector<NamedBuffer>& out) const;
  void collect(const std::string& prefix, std::vector<std::pair<std::string, Module*>>& out);

  std::vector<NamedParameter> parameters_;
  std::vector<std::pair<std::string, Tensor*>> buffers_;
  std::vector<std::pair<std::string, Module*>> modules_;
  bool training_ = true;
};

}  // namespace switchyard::nn
