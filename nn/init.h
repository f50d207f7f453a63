#pragma once

#include <functional>

#include "core/rng.h"

/// Initial values of weights. Drawn on the CPU whatever the device, so that a seed gives the same weights everywhere.
namespace switchyard::nn {

/// Makes the f32 starting value of a weight [..., outputs, inputs] from the generator's next numbers.
using Initializer = std::function<Tensor(const Shape& shape, Generator& generator)>;

namespace init {

Initializer zeros();
Initializer ones();
Initializer uniform(double low, double high);
Initializer normal(double deviation);
/// Normal, cut off at `cut` deviations on both sides by drawing from the remaining part of the distribution.
Initializer truncated_normal(double deviation, double cut = 2);
/// Normal with deviation scale / sqrt(inputs): keeps the size of activations at scale 1.
Initializer fan_in_normal(double scale = 1);
/// Uniform, with the same deviation. PyTorch's Linear starts so, at scale 1 / sqrt(3).
Initializer fan_in_uniform(double scale = 1);
/// Uniform in +-sqrt(6 / (inputs + outputs)) (Glorot & Bengio, 2010).
Initializer xavier_uniform();
/// Normal with deviation sqrt(2 / (inputs + outputs)).
Initializer xavier_normal();
/// Uniform in +-sqrt(6 / inputs), for layers before a ReLU (He et al., 2015).
Initializer kaiming_uniform();
/// Normal with deviation sqrt(2 / inputs).
Initializer kaiming_normal();

}  // namespace init

/// The generator that layers draw their first weights from unless given another; seed_all() restarts it.
inline Generator& initial_weights() { return default_generator(Device::cpu()); }

}  // namespace switchyard::nn
