#include "core/ops/random.h"

#include <cmath>
#include <numbers>

#include "core/kernels/random.h"
#include "core/ops/dispatch.h"
#include "core/parallel.h"
#include "core/philox.h"

namespace switchyard::ops {
namespace {

void check_stream(const char* op, const RandomStream& stream) {
  check(stream.base.defined(), op, ": the random stream has no generator; take it from Generator::next");
}

}  // namespace

Tensor uniform(const Shape& shape, const RandomStream& stream, double low, double high, DType dtype) {
  check_stream("uniform", stream);
  check(is_floating(dtype), "uniform: expected a floating dtype (f32, f64, bf16), got ", dtype);
  check(std::isfinite(low) && std::isfinite(high) && low <= high, "uniform: bad range ", low, " to ", high);
  const Tensor out = Tensor::empty(shape, dtype, stream.base.device());
  if (out.numel() > 0) SWITCHYARD_DISPATCH(out.device(), uniform, stream, low, high, out);
  return out;
}

Tensor normal(const Shape& shape, const RandomStream& stream, double mean, double deviation, DType dtype) {
  check_stream("normal", stream);
  check(!stream.base.device().is_cuda(), "normal: needs a stream of the cpu, got one of ", stream.base.device());
  check(is_floating(dtype), "normal: expected a floating dtype (f32, f64, bf16), got ", dtype);
  check(std::isfinite(mean) && std::isfinite(deviation) && deviation >= 0, "normal: bad mean ", mean, " or deviation ",
        deviation);
  const Tensor out = Tensor::empty(shape, DType::f64, Device::cpu());
  double* const to = out.data<double>();
  const std::int64_t numel = out.numel();
  const std::uint64_t start = static_cast<std::uint64_t>(stream.base.item<std::int64_t>()) + stream.offset;
  // A block's four words make two pairs, each pair two normal numbers.
  parallel_for(0, (numel + 3) / 4, 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const auto words = philox(stream.seed, start + static_cast<std::uint64_t>(block));
      for (int pair = 0; pair < 2; ++pair) {
        const double radius = std::sqrt(-2 * std::log((static_cast<double>(words[2 * pair]) + 1) * 0x1p-32));
        const double angle = 2 * std::numbers::pi * (static_cast<double>(words[2 * pair + 1]) * 0x1p-32);
        const std::int64_t at = 4 * block + 2 * pair;
        if (at < numel) to[at] = mean + deviation * (radius * std::cos(angle));
        if (at + 1 < numel) to[at + 1] = mean + deviation * (radius * std::sin(angle));
      }
    }
  });
  return out.to(dtype);
}

Tensor bernoulli(const Shape& shape, const RandomStream& stream, double probability) {
  check_stream("bernoulli", stream);
  check(probability >= 0 && probability <= 1, "bernoulli: probability ", probability, " is outside 0..1");
  const Tensor out = Tensor::empty(shape, DType::boolean, stream.base.device());
  if (out.numel() > 0) SWITCHYARD_DISPATCH(out.device(), bernoulli, stream, probability, out);
  return out;
}

Tensor dropout(const Tensor& x, const RandomStream& stream, double probability) {
  check(x.defined(), "dropout: the tensor is undefined");
  check_stream("dropout", stream);
  check(is_floating(x.dtype()), "dropout: expected a floating dtype (f32, f64, bf16), got ", x.dtype());
  check(probability >= 0 && probability < 1, "dropout: probability ", probability, " is outside [0, 1)");
  check(x.device() == stream.base.device(), "dropout: x on ", x.device(), ", random stream on ", stream.base.device());
  const Tensor out = Tensor::empty_like(x);
  if (out.numel() > 0) SWITCHYARD_DISPATCH(x.device(), dropout, x.contiguous(), stream, probability, out);
  return out;
}

}  // namespace switchyard::ops
