#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// Transcendental functions that the compiler can put into SIMD loops: branch-free in float, where training spends its
// time; the C library's in double. Float results are within 2 units in the last place (erf, tanh: 3) over the whole
// range; NaN, infinities, overflow and underflow to subnormal numbers come out as IEEE says.
namespace switchyard::cpu {

inline double fast_exp(double x) { return std::exp(x); }
inline double fast_tanh(double x) { return std::tanh(x); }
inline double fast_erf(double x) { return std::erf(x); }

/// e^x = 2^n e^r with n = round(x / ln 2); e^r by the minimax polynomial of Cephes' expf.
inline float fast_exp(float x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low mantissa bits
  x = x < -105.0f ? -105.0f : x;       // keeps NaN
  x = x > 89.0f ? 89.0f : x;
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, since it may be beyond the range of normal numbers where the product is not.
  const std::int32_t exponent =
      static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(kRound));
  const std::int32_t half = exponent >> 1;
  const float first = std::bit_cast<float>(static_cast<std::uint32_t>(half + 127) << 23);
  const float second = std::bit_cast<float>(static_cast<std::uint32_t>(exponent - half + 127) << 23);
  return p * first * second;
}

/// Near 0 the polynomial of Cephes' tanhf, elsewhere 1 - 2 / (e^2|x| + 1).
inline float fast_tanh(float x) {
  const float size = std::fabs(x);
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = p * z * x + x;
  const float far = std::copysign(1.0f - 2.0f / (fast_exp(2.0f * size) + 1.0f), x);
  return size < 0.625f ? near : far;
}

/// Near 0 an odd polynomial, elsewhere 1 - e^p(|x|) with p a polynomial (both by N. Juffa).
inline float fast_erf(float x) {
  const float size = std::fabs(x), z = x * x;
  float far = -1.72853470e-5f * size + 3.83197126e-4f;
  far = far * z + (-3.88396438e-3f * size + 2.42546219e-2f);
  far = far * size - 1.06777877e-1f;
  far = far * size - 6.34846687e-1f;
  far = far * size - 1.28717512e-1f;
  far = far * size - size;
  far = std::copysign(1.0f - fast_exp(far), x);
  float near = -5.96761703e-4f;
  near = near * z + 4.99119423e-3f;
  near = near * z - 2.67681349e-2f;
  near = near * z + 1.12819925e-1f;
  near = near * z - 3.76125336e-1f;
  near = near * z + 1.28379166e-1f;
  near = near * x + x;
  return size > 0.927734375f ? far : near;
}

}  // namespace switchyard::cpu
