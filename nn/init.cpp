#include "nn/init.h"

#include <cmath>

#include "core/ops/random.h"

namespace switchyard::nn::init {
namespace {

struct Fan {
  double inputs, outputs;
};

Fan fan_of(const Shape& shape) {
  check(shape.rank() >= 2, "initializer: inputs and outputs are needed, shape ", shape, " has too few axes");
  return {static_cast<double>(shape[shape.size() - 1]), static_cast<double>(shape[shape.size() - 2])};
}

Tensor draw_normal(const Shape& shape, Generator& generator, double deviation) {
  return ops::normal(shape, generator.next(shape.numel()), 0, deviation);
}

Tensor draw_uniform(const Shape& shape, Generator& generator, double bound) {
  return ops::uniform(shape, generator.next(shape.numel()), -bound, bound);
}

}  // namespace

Initializer zeros() {
  return [](const Shape& shape, Generator&) { return Tensor::zeros(shape); };
}

Initializer ones() {
  return [](const Shape& shape, Generator&) { return Tensor::ones(shape); };
}

Initializer uniform(double low, double high) {
  check(low <= high, "uniform initializer: low ", low, " is above high ", high);
  return [low, high](const Shape& shape, Generator& generator) {
    return ops::uniform(shape, generator.next(shape.numel()), low, high);
  };
}

Initializer normal(double deviation) {
  check(deviation >= 0, "normal initializer: deviation ", deviation, " is negative");
  return [deviation](const Shape& shape, Generator& generator) { return draw_normal(shape, generator, deviation); };
}

// Rejection: what falls outside is drawn again, so the distribution is exact and still a function of the seed alone.
Initializer truncated_normal(double deviation, double cut) {
  check(deviation >= 0, "truncated_normal initializer: deviation ", deviation, " is negative");
  check(cut >= 0.1, "truncated_normal initializer: cut ", cut, " is too narrow, expected at least 0.1");
  return [deviation, cut](const Shape& shape, Generator& generator) {
    std::vector<float> values = draw_normal(shape, generator, 1).to_vector<float>();
    std::vector<std::size_t> outside(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) outside[i] = i;
    const auto keep_outside = [&] {
      std::erase_if(outside, [&](std::size_t i) { return std::abs(values[i]) <= cut; });
    };
    for (keep_outside(); !outside.empty(); keep_outside()) {
      const Shape missing = {static_cast<std::int64_t>(outside.size())};
      const std::vector<float> again = draw_normal(missing, generator, 1).to_vector<float>();
      for (std::size_t i = 0; i < outside.size(); ++i) values[outside[i]] = again[i];
    }
    for (float& value : values) value *= static_cast<float>(deviation);
    return Tensor::from(values, shape);
  };
}

Initializer fan_in_normal(double scale) {
  check(scale >= 0, "fan_in_normal initializer: scale ", scale, " is negative");
  return [scale](const Shape& shape, Generator& generator) {
    return draw_normal(shape, generator, scale / std::sqrt(fan_of(shape).inputs));
  };
}

Initializer fan_in_uniform(double scale) {
  check(scale >= 0, "fan_in_uniform initializer: scale ", scale, " is negative");
  return [scale](const Shape& shape, Generator& generator) {
    return draw_uniform(shape, generator, scale * std::sqrt(3 / fan_of(shape).inputs));
  };
}

Initializer xavier_uniform() {
  return [](const Shape& shape, Generator& generator) {
    const Fan fan = fan_of(shape);
    return draw_uniform(shape, generator, std::sqrt(6 / (fan.inputs + fan.outputs)));
  };
}

Initializer xavier_normal() {
  return [](const Shape& shape, Generator& generator) {
    const Fan fan = fan_of(shape);
    return draw_normal(shape, generator, std::sqrt(2 / (fan.inputs + fan.outputs)));
  };
}

Initializer kaiming_uniform() {
  return [](const Shape& shape, Generator& generator) {
    return draw_uniform(shape, generator, std::sqrt(6 / fan_of(shape).inputs));
  };
}

Initializer kaiming_normal() { return fan_in_normal(std::sqrt(2.0)); }

}  // namespace switchyard::nn::init
