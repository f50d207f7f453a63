#pragma once

#include "core/kernels/entry_points.h"
#include "core/ops/optim.h"

SWITCHYARD_ENTRY(adamw, const std::vector<ops::AdamWSlot>& slots, const Tensor& learning_rate, const Tensor& step,
                 const Tensor& gradient_scale, double beta1, double beta2, double epsilon)
SWITCHYARD_ENTRY(sgd, const std::vector<ops::SgdSlot>& slots, const Tensor& learning_rate, const Tensor& gradient_scale,
                 double momentum)
/// norm f64 [1].
SWITCHYARD_ENTRY(global_norm, const std::vector<Tensor>& tensors, const Tensor& norm)
/// factor f64 [1] from norm f64 [1].
SWITCHYARD_ENTRY(clip_factor, const Tensor& norm, double max_norm, const Tensor& factor)
