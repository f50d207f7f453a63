// Rotary positions: the first r channels of a head are r/2 points of the plane (channel i with channel i + r/2), each
// turned by its position times its own frequency.

#include "core/kernels/attention.h"
#include "core/parallel.h"

namespace switchyard::cpu {

namespace {

/// out may be x.
template <class T, class A>
void rotate(const T* x, const A* cosine, const A* sine, std::int64_t rotated, A direction, std::int64_t width, T* out) {
  const std::int64_t half = rotated / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const A a = static_cast<A>(x[i]), b = static_cast<A>(x[i + half]);
    out[i] = static_cast<T>(a * cosine[i] - b * (direction * sine[i]));
    out[i + half] = static_cast<T>(b * cosine[i] + a * (direction * sine[i]));
  }
  for (std::int64_t i = rotated; i < width; ++i) out[i] = x[i];
}

}  // namespace

void rope(const Tensor& x, const Tensor& cosine, const Tensor& sine, std::int64_t first_position, bool inverse,
          const Tensor& out) {
  const std::int64_t length = x.size(1), heads = x.size(2), width = x.size(3), rotated = cosine.size(1);
  dispatch_floating(x.dtype(), "rope", [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    const T* from = x.data<T>();
    T* to = out.data<T>();
    const A* cosines = cosine.data<A>() + first_position * rotated;
    const A* sines = sine.data<A>() + first_position * rotated;
    const A direction = inverse ? A{-1} : A{1};
    const std::int64_t grain = 1 + 16384 / (heads * width);
    parallel_for(0, x.size(0) * length, grain, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const std::int64_t batch = row / length, position = row % length;
        const T* token = from + batch * x.stride(0) + position * x.stride(1);
        T* target = to + batch * out.stride(0) + position * out.stride(1);
        for (std::int64_t head = 0; head < heads; ++head) {
          rotate(token + head * x.stride(2), cosines + position * rotated, sines + position * rotated, rotated,
                 direction, width, target + head * out.stride(2));
        }
      }
    });
  });
}

}  // namespace switchyard::cpu
