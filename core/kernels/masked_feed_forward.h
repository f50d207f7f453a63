#pragma once

#include "core/ops/masked_feed_forward.h"

namespace switchyard::cuda {

/// ops::masked_feed_forward for a few tokens. Operands are dense; hidden [N, E S] is room for what the chosen experts'
/// neurons give.
void decode_feed_forward(const Tensor& x, const ops::ExpertLayer& layer, const Tensor& mask, ops::Activation activation,
                         const Tensor& hidden, const Tensor& y);
/// hidden [N, E S] becomes 0 where the mask [N, E], dense as well, leaves an expert out.
void keep_chosen(const Tensor& hidden, const Tensor& mask);

}  // namespace switchyard::cuda
