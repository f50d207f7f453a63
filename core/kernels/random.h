#pragma once

#include "core/kernels/entry_points.h"
#include "core/rng.h"

/// base[0] += blocks.
SWITCHYARD_ENTRY(advance_counter, const Tensor& base, std::int64_t blocks)
/// Floating, dense: low + (high - low) u, u uniform in [0, 1).
SWITCHYARD_ENTRY(uniform, const RandomStream& stream, double low, double high, const Tensor& out)
/// Bool, dense: true with the given probability (u < probability).
SWITCHYARD_ENTRY(bernoulli, const RandomStream& stream, double probability, const Tensor& out)
/// Dense: out = u < probability ? 0 : x / (1 - probability).
SWITCHYARD_ENTRY(dropout, const Tensor& x, const RandomStream& stream, double probability, const Tensor& out)
