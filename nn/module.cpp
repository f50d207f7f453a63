#include "nn/module.h"

namespace switchyard::nn {
namespace {

std::string join(const std::string& prefix, const std::string& name) {
  if (name.empty()) return prefix;
  return prefix.empty() ? name : prefix + "." + name;
}

}  // namespace

Variable Module::register_parameter(std::string name, const Tensor& initial, bool decays) {
  for (const NamedParameter& other : parameters_)
    check(other.name != name, "register_parameter: the module has a parameter \"", name, "\" already");
  parameters_.push_back({std::move(name), Variable(initial.to(default_device()), true), decays});
  return parameters_.back().variable;
}

void Module::register_buffer(std::string name, Tensor& tensor) {
  for (const auto& other : buffers_)
    check(other.first != name, "register_buffer: the module has a buffer \"", name, "\" already");
  buffers_.emplace_back(std::move(name), &tensor);
}

void Module::register_module(std::string name, Module& module) {
  for (const auto& other : modules_)
    check(other.first != name, "register_module: the module has a sublayer \"", name, "\" already");
  modules_.emplace_back(std::move(name), &module);
}

void Module::replace_module(std::string_view name, Module& module) {
  for (auto& [own_name, own_module] : modules_)
    if (own_name == name) {
      own_module = &module;
      return;
    }
  fail("replace_module: the module has no sublayer \"", name, "\"");
}

void Module::collect(const std::string& prefix, std::vector<NamedParameter>& out) const {
  for (const NamedParameter& p : parameters_) out.push_back({join(prefix, p.name), p.variable, p.decays});
  for (const auto& [name, module] : modules_) module->collect(join(prefix, name), out);
}

void Module::collect(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  for (const auto& [name, tensor] : buffers_) out.push_back({join(prefix, name), *tensor});
  for (const auto& [name, module] : modules_) module->collect(join(prefix, name), out);
}

void Module::collect(const std::string& prefix, std::vector<std::pair<std::string, Module*>>& out) {
  out.emplace_back(prefix, this);
  for (const auto& [name, module] : modules_) module->collect(join(prefix, name), out);
}

std::vector<NamedParameter> Module::named_parameters() const {
  std::vector<NamedParameter> out;
  collect("", out);
  return out;
}

std::vector<NamedBuffer> Module::named_buffers() const {
  std::vector<NamedBuffer> out;
  collect("", out);
  return out;
}

std::vector<std::pair<std::string, Module*>> Module::named_modules() {
  std::vector<std::pair<std::string, Module*>> out;
  collect("", out);
  return out;
}

Variables Module::parameters() const {
  Variables out;
  for (const NamedParameter& p : named_parameters()) out.push_back(p.variable);
  return out;
}

std::int64_t Module::parameter_count() const {
  std::int64_t count = 0;
  for (const Variable& p : parameters()) count += p.numel();
  return count;
}

void Module::train(bool on) {
  for (const auto& [name, module] : named_modules()) module->training_ = on;
}

void Module::to(Device device) {
  for (const Variable& p : parameters()) p.set_data(p.data().to(device));
  for (const auto& [name, module] : named_modules())
    for (const auto& [buffer_name, tensor] : module->buffers_)
      if (tensor->defined()) *tensor = tensor->to(device);
}

void Module::to(DType dtype) {
  check(is_floating(dtype), "Module::to: parameters need a floating dtype (f32, f64, bf16), got ", dtype);
  for (const Variable& p : parameters()) p.set_data(p.data().to(dtype));
  for (const auto& [name, module] : named_modules())
    for (const auto& [buffer_name, tensor] : module->buffers_)
      if (tensor->defined() && is_floating(tensor->dtype())) *tensor = tensor->to(dtype);
}

void Module::zero_grad() const {
  for (const Variable& p : parameters()) p.zero_grad();
}

}  // namespace switchyard::nn
