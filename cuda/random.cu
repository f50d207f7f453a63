// Random numbers: Philox with the stream's base read from device memory (see core/rng.h).

#include "core/kernels/random.h"
#include "core/philox.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

/// Element i of a stream, as a uniform number in [0, 1). One thread makes the four elements of a Philox block.
template <class F>
__global__ void for_uniform(std::uint64_t seed, const std::int64_t* base, std::uint64_t offset, std::int64_t count,
                            F f) {
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (block * 4 >= count) return;
  const auto words = philox(seed, static_cast<std::uint64_t>(*base) + offset + static_cast<std::uint64_t>(block));
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const std::int64_t i = block * 4 + lane;
    if (i < count) f(i, uniform_from_bits(words[lane]));
  }
}

template <class F>
void launch(const char* name, const RandomStream& stream, const Tensor& out, F f) {
  const std::int64_t count = out.numel();
  if (count == 0) return;
  for_uniform<<<blocks_for((count + 3) / 4, kThreads), kThreads, 0, stream_of(out)>>>(
      stream.seed, stream.base.data<std::int64_t>(), stream.offset, count, f);
  check_launch(name);
}

template <class D>
struct Uniform {
  D* out;
  double low, high;
  __device__ void operator()(std::int64_t i, float u) const {
    using A = compute_t<D>;
    out[i] = convert<D>(static_cast<A>(low) + (static_cast<A>(high) - static_cast<A>(low)) * static_cast<A>(u));
  }
};
struct Bernoulli {
  bool* out;
  double probability;
  __device__ void operator()(std::int64_t i, float u) const { out[i] = u < probability; }
};
template <class D>
struct Dropout {
  const D* x;
  D* out;
  double probability;
  compute_t<D> scale;
  __device__ void operator()(std::int64_t i, float u) const {
    out[i] = convert<D>(u < probability ? compute_t<D>(0) : load(x + i) * scale);
  }
};

__global__ void add_blocks(std::int64_t* base, std::int64_t blocks) { *base += blocks; }

}  // namespace

void advance_counter(const Tensor& base, std::int64_t blocks) {
  add_blocks<<<1, 1, 0, stream_of(base)>>>(base.data<std::int64_t>(), blocks);
  check_launch("advance_counter");
}

void uniform(const RandomStream& stream, double low, double high, const Tensor& out) {
  dispatch_floating(out.dtype(), "uniform", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch("uniform", stream, out, Uniform<device_t<T>>{pointer<T>(out), low, high});
  });
}

void bernoulli(const RandomStream& stream, double probability, const Tensor& out) {
  launch("bernoulli", stream, out, Bernoulli{out.data<bool>(), probability});
}

void dropout(const Tensor& x, const RandomStream& stream, double probability, const Tensor& out) {
  dispatch_floating(x.dtype(), "dropout", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = compute_t<device_t<T>>;
    launch("dropout", stream, out,
           Dropout<device_t<T>>{pointer<T>(x), pointer<T>(out), probability, static_cast<A>(1 / (1 - probability))});
  });
}

}  // namespace switchyard::cuda
