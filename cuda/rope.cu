// Rotary positions. A thread turns kWidth neighbouring pairs of channels (i, i + r/2) of one head, or copies kWidth of
// those behind the rotated ones; in place there is nothing to copy. Device memory sees each channel once; the tables
// stay in cache.

#include "core/kernels/attention.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

/// A [B, T, H, d] operand with stride 1 on d.
template <class D>
struct Rows {
  D* data;
  std::int64_t batch, token, head;

  __device__ D* at(std::int64_t b, int t, int h) const { return data + b * batch + t * token + h * head; }
};

template <class D>
struct Rotation {
  using A = compute_t<D>;
  Rows<const D> x;
  Rows<D> out;
  const A *cosine, *sine;  // [positions, rotated], from the first token's position on
  A direction;
  int batch, length, heads, rotated;
  int pieces;  // of kWidth channels a head: rotated / 2 of pairs, then what is copied
};

template <int kWidth, class D>
__global__ void rotate(Rotation<D> in) {
  using A = compute_t<D>;
  using Piece = Vector<D, kWidth>;
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x, row = i / in.pieces;
  const int first = static_cast<int>(i % in.pieces) * kWidth, half = in.rotated / 2;
  const int h = static_cast<int>(row % in.heads), t = static_cast<int>(row / in.heads);
  if (t >= in.length) return;
  for (std::int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const D* from = in.x.at(b, t, h);
    D* to = in.out.at(b, t, h);
    if (first >= half) {
      *reinterpret_cast<Piece*>(to + first + half) = *reinterpret_cast<const Piece*>(from + first + half);
      continue;
    }
    Piece lower = *reinterpret_cast<const Piece*>(from + first);
    Piece upper = *reinterpret_cast<const Piece*>(from + first + half);
    const std::int64_t angle = static_cast<std::int64_t>(t) * in.rotated + first;
    const auto cosine = *reinterpret_cast<const Vector<A, kWidth>*>(in.cosine + angle);
    const auto sine = *reinterpret_cast<const Vector<A, kWidth>*>(in.sine + angle);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const A a = load(&lower.values[j]), c = load(&upper.values[j]), s = in.direction * sine.values[j];
      lower.values[j] = convert<D>(a * cosine.values[j] - c * s);
      upper.values[j] = convert<D>(c * cosine.values[j] + a * s);
    }
    *reinterpret_cast<Piece*>(to + first) = lower;
    *reinterpret_cast<Piece*>(to + first + half) = upper;
  }
}

/// True if every access of `channels` neighbours falls on a multiple of its size.
template <class T>
bool allows(std::int64_t channels, std::int64_t rotated, std::initializer_list<Tensor> operands, const Tensor& cosine,
            const Tensor& sine) {
  const auto aligned = [&](const Tensor& t, std::size_t element) {
    return reinterpret_cast<std::uintptr_t>(t.raw()) % (static_cast<std::size_t>(channels) * element) == 0;
  };
  bool fits =
      rotated / 2 % channels == 0 && aligned(cosine, sizeof(accumulate_t<T>)) && aligned(sine, sizeof(accumulate_t<T>));
  for (const Tensor& t : operands) {
    fits = fits && aligned(t, sizeof(T)) && t.size(3) % channels == 0;
    for (int axis = 0; axis < 3; ++axis) fits = fits && t.stride(axis) % channels == 0;
  }
  return fits;
}

}  // namespace

void rope(const Tensor& x, const Tensor& cosine, const Tensor& sine, std::int64_t first_position, bool inverse,
          const Tensor& out) {
  const std::int64_t rotated = cosine.size(1);
  const bool in_place = x.raw() == out.raw();
  const std::int64_t channels = in_place ? rotated / 2 : x.size(3) - rotated / 2;  // pairs, and channels to copy
  if (out.numel() == 0 || channels == 0) return;
  dispatch_floating(x.dtype(), "rope", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto launch = [&](auto width) {
      const std::int64_t threads = x.size(1) * x.size(2) * (channels / width.value);
      const Rotation<device_t<T>> rotation{{pointer<T>(x), x.stride(0), x.stride(1), x.stride(2)},
                                           {pointer<T>(out), out.stride(0), out.stride(1), out.stride(2)},
                                           pointer<A>(cosine) + first_position * rotated,
                                           pointer<A>(sine) + first_position * rotated,
                                           inverse ? A(-1) : A(1),
                                           static_cast<int>(x.size(0)),
                                           static_cast<int>(x.size(1)),
                                           static_cast<int>(x.size(2)),
                                           static_cast<int>(rotated),
                                           static_cast<int>(channels / width.value)};
      const dim3 grid(blocks_for(threads, kThreads), static_cast<unsigned>(std::min<std::int64_t>(x.size(0), 65535)));
      rotate<width.value><<<grid, kThreads, 0, stream_of(x)>>>(rotation);
    };
    constexpr int kWide = 16 / sizeof(T), kHalf = 8 / sizeof(T);
    if (allows<T>(kWide, rotated, {x, out}, cosine, sine)) launch(std::integral_constant<int, kWide>{});
    else if (allows<T>(kHalf, rotated, {x, out}, cosine, sine)) launch(std::integral_constant<int, kHalf>{});
    else launch(std::integral_constant<int, 1>{});
  });
  check_launch("rope");
}

}  // namespace switchyard::cuda
