#pragma once

#include <functional>

#include "autograd/variable.h"

namespace switchyard {

/// Activation checkpointing: runs `f` without saving anything and runs it again in the backward pass, with the same
/// random numbers. Costs one more forward pass of `f`; saves all its activations but the inputs. Parameters that `f`
/// uses get their gradients as usual. `f` must do the same both times.
Variables recompute(const std::function<Variables(const Variables&)>& f, const Variables& inputs);

}  // namespace switchyard
