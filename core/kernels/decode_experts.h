#pragma once

#include "core/ops/routed_feed_forward.h"

namespace switchyard::cuda {

/// ops::masked_feed_forward for a few tokens: y [N, M]. Operands are dense, but for up and gate, whose dense axis is D.
void decode_masked(const Tensor& x, const ops::ExpertLayer& layer, const Tensor& mask, ops::Activation activation,
                   const Tensor& y);
/// ops::routed_feed_forward in the same way, with any gate but `all`. last_bias [M] and addend [N, M] may be undefined.
void decode_routed(const Tensor& x, const ops::ExpertLayer& layer, const ops::ExpertRouter& router,
                   ops::Activation activation, const Tensor& last_bias, const Tensor& addend, const Tensor& y);

}  // namespace switchyard::cuda
