#include "core/ops/optim.h"

#include "core/kernels/optim.h"
#include "core/ops/dispatch.h"
#include "core/ops/norm.h"

namespace switchyard::ops {
namespace {

void check_scalar(const char* op, const char* name, const Tensor& x, DType dtype, Device device) {
  check(x.defined() && x.dtype() == dtype && x.shape() == Shape{1} && x.device() == device, op, ": ", name, " must be ",
        dtype, " [1] on ", device);
}

void check_state(const char* op, std::size_t slot, const char* name, const Tensor& state, const Tensor& parameter) {
  check(state.defined() && state.shape() == parameter.shape() && state.device() == parameter.device() &&
            state.dtype() == compute_dtype(parameter.dtype()) && state.is_contiguous(),
        op, ": ", name, " of slot ", slot, " must be a dense ", compute_dtype(parameter.dtype()), " tensor ",
        parameter.shape(), " on ", parameter.device());
}

template <class Slot>
void check_slot(const char* op, std::size_t index, const Slot& slot, Device device) {
  const Tensor& parameter = slot.parameter;
  check(parameter.defined() && slot.gradient.defined(), op, ": slot ", index, " lacks its parameter or gradient");
  check(is_floating(parameter.dtype()) && is_floating(slot.gradient.dtype()), op,
        ": expected floating dtypes (f32, f64, bf16), slot ", index, " has ", parameter.dtype(), " and gradient ",
        slot.gradient.dtype());
  check((parameter.dtype() == DType::f64) == (slot.gradient.dtype() == DType::f64), op, ": slot ", index, " is ",
        parameter.dtype(), ", its gradient ", slot.gradient.dtype());
  check(parameter.device() == device && slot.gradient.device() == device, op, ": slot ", index, " is on ",
        parameter.device(), ", its gradient on ", slot.gradient.device(), ", expected ", device);
  check(parameter.shape() == slot.gradient.shape(), op, ": slot ", index, " is ", parameter.shape(), ", its gradient ",
        slot.gradient.shape());
  check(parameter.is_contiguous() && slot.gradient.is_contiguous(), op, ": slot ", index, " is not dense");
  const bool needs_master = parameter.dtype() == DType::bf16;
  check(slot.master.defined() == needs_master, op, ": slot ", index, " is ", parameter.dtype(),
        needs_master ? " and needs a master copy" : " and takes no master copy");
  if (needs_master) check_state(op, index, "master", slot.master, parameter);
}

}  // namespace

// What the profiler counts for the optimisers' slots.
static double bytes_of(const std::vector<AdamWSlot>& slots) {
  double sum = 0;
  for (const AdamWSlot& slot : slots)
    sum += bytes_of(std::vector{slot.parameter, slot.gradient, slot.first_moment, slot.second_moment, slot.master});
  return sum;
}
static double bytes_of(const std::vector<SgdSlot>& slots) {
  double sum = 0;
  for (const SgdSlot& slot : slots)
    sum += bytes_of(std::vector{slot.parameter, slot.gradient, slot.momentum, slot.master});
  return sum;
}

void adamw(const std::vector<AdamWSlot>& slots, const Tensor& learning_rate, const Tensor& step,
           const Tensor& gradient_scale, double beta1, double beta2, double epsilon) {
  if (slots.empty()) return;
  check(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1, "adamw: betas are ", beta1, " and ", beta2,
        ", expected 0 <= beta < 1");
  check(epsilon >= 0, "adamw: epsilon is ", epsilon, ", expected at least 0");
  const Device device = slots[0].parameter.device();
  check_scalar("adamw", "learning_rate", learning_rate, DType::f64, device);
  check_scalar("adamw", "step", step, DType::i64, device);
  if (gradient_scale.defined()) check_scalar("adamw", "gradient_scale", gradient_scale, DType::f64, device);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    check_slot("adamw", i, slots[i], device);
    check_state("adamw", i, "first_moment", slots[i].first_moment, slots[i].parameter);
    check_state("adamw", i, "second_moment", slots[i].second_moment, slots[i].parameter);
  }
  SWITCHYARD_DISPATCH(device, adamw, slots, learning_rate, step, gradient_scale, beta1, beta2, epsilon);
}

void sgd(const std::vector<SgdSlot>& slots, const Tensor& learning_rate, const Tensor& gradient_scale,
         double momentum) {
  if (slots.empty()) return;
  check(momentum >= 0 && momentum < 1, "sgd: momentum is ", momentum, ", expected 0 <= momentum < 1");
  const Device device = slots[0].parameter.device();
  check_scalar("sgd", "learning_rate", learning_rate, DType::f64, device);
  if (gradient_scale.defined()) check_scalar("sgd", "gradient_scale", gradient_scale, DType::f64, device);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    check_slot("sgd", i, slots[i], device);
    if (slots[i].momentum.defined()) {
      check_state("sgd", i, "momentum", slots[i].momentum, slots[i].parameter);
    } else {
      check(momentum == 0, "sgd: momentum is ", momentum, ", but slot ", i, " has no momentum tensor");
    }
  }
  SWITCHYARD_DISPATCH(device, sgd, slots, learning_rate, gradient_scale, momentum);
}

Tensor global_norm(const std::vector<Tensor>& tensors) {
  const Device device = tensors.empty() ? Device::cpu() : tensors[0].device();
  std::vector<Tensor> dense;
  dense.reserve(tensors.size());
  for (const Tensor& x : tensors) {
    check(x.defined(), "global_norm: an undefined tensor");
    check(is_floating(x.dtype()), "global_norm: expected a floating dtype (f32, f64, bf16), got ", x.dtype());
    check(x.device() == device, "global_norm: devices differ: ", device, " and ", x.device());
    dense.push_back(x.contiguous());
  }
  const Tensor norm = Tensor::empty({1}, DType::f64, device);
  SWITCHYARD_DISPATCH(device, global_norm, dense, norm);
  return norm;
}

Tensor clip_factor(const Tensor& norm, double max_norm) {
  check(norm.defined() && norm.dtype() == DType::f64 && norm.shape() == Shape{1}, "clip_factor: norm must be f64 [1]");
  check(max_norm >= 0, "clip_factor: max_norm is ", max_norm, ", expected at least 0");
  const Tensor factor = Tensor::empty({1}, DType::f64, norm.device());
  SWITCHYARD_DISPATCH(norm.device(), clip_factor, norm, max_norm, factor);
  return factor;
}

}  // namespace switchyard::ops
