#pragma once

#include "core/kernels/entry_points.h"
#include "core/ops/masked_feed_forward.h"

namespace switchyard::cpu {

/// ops::masked_feed_forward: y [N, M]. Operands are dense, but for up and gate, whose dense axis is D. last_bias [M]
/// and addend [N, M] may be undefined.
void masked_feed_forward(const Tensor& x, const ops::ExpertLayer& layer, const Tensor& mask, ops::Activation activation,
                         const Tensor& last_bias, const Tensor& addend, const Tensor& y);

}  // namespace switchyard::cpu

namespace switchyard::cuda {

/// Whether block_feed_forward can do this on x's GPU; operands as there.
bool block_feed_forward_fits(const Tensor& x, const ops::ExpertLayer& layer, ops::Activation activation);
/// ops::masked_feed_forward without a gate, for many tokens and small experts, by blocks of tokens and neurons: a block
/// in which no token has chosen an expert is left out. Operands are dense, but of up each neuron's weights lie
/// together: it is the transposed view of [E, S, D]. hidden [N, E S] is room for the chosen neurons.
void block_feed_forward(const Tensor& x, const ops::ExpertLayer& layer, const Tensor& mask, ops::Activation activation,
                        const Tensor& hidden, const Tensor& y);

}  // namespace switchyard::cuda

/// hidden [N, E S] becomes 0 where the mask [N, E], dense as well, leaves an expert out.
SWITCHYARD_ENTRY(keep_chosen, const Tensor& hidden, const Tensor& mask)
