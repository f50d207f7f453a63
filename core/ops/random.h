#pragma once

#include "core/rng.h"

namespace switchyard::ops {

/// Floating tensor with elements uniform in [low, high), on the stream's device.
Tensor uniform(const Shape& shape, const RandomStream& stream, double low = 0, double high = 1,
               DType dtype = DType::f32);
/// Normally distributed elements (Box-Muller). Always made on the CPU, so that initial weights do not depend on the
/// device; the stream must be a CPU stream.
Tensor normal(const Shape& shape, const RandomStream& stream, double mean = 0, double deviation = 1,
              DType dtype = DType::f32);
/// Bool tensor, true with the given probability.
Tensor bernoulli(const Shape& shape, const RandomStream& stream, double probability);
/// Zeroes elements with the given probability in [0, 1) and divides the others by 1 - probability. The mask is not
/// stored: the backward pass is the same call on dy.
Tensor dropout(const Tensor& x, const RandomStream& stream, double probability);

}  // namespace switchyard::ops
