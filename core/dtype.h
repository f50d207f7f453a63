#pragma once

#include <bit>
#include <cstdint>
#include <ostream>
#include <string_view>
#include <type_traits>

#include "core/error.h"

namespace switchyard {

/// Element types of a Tensor.
enum class DType : std::uint8_t { f32, f64, bf16, i32, i64, boolean };

/// The upper 16 bits of a float: 8 exponent bits, 7 mantissa bits. Arithmetic happens in float.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  /// Rounds to nearest, ties to even; NaN stays NaN.
  explicit bfloat16(float value) {
    const auto word = std::bit_cast<std::uint32_t>(value);
    const bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
    bits = is_nan ? static_cast<std::uint16_t>((word >> 16) | 0x40u)
                  : static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

/// Bytes of one element.
std::size_t size_of(DType dtype);
/// "f32", "f64", "bf16", "i32", "i64" or "bool".
std::string_view name_of(DType dtype);
/// True for f32, f64 and bf16.
bool is_floating(DType dtype);
std::ostream& operator<<(std::ostream& out, DType dtype);

/// The dtype of a C++ type.
template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  else if constexpr (std::is_same_v<T, double>) return DType::f64;
  else if constexpr (std::is_same_v<T, bfloat16>) return DType::bf16;
  else if constexpr (std::is_same_v<T, std::int32_t>) return DType::i32;
  else if constexpr (std::is_same_v<T, std::int64_t>) return DType::i64;
  else {
    static_assert(std::is_same_v<T, bool>, "no DType stands for this C++ type");
    return DType::boolean;
  }
}

/// The type a kernel computes in: float for bf16 and f32, double for f64.
template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Hands a type to a function as an argument.
template <class T>
struct TypeTag {
  using type = T;
};

/// Calls f(TypeTag<T>{}) with the C++ type of a floating dtype; throws, naming `op`, for any other.
template <class F>
decltype(auto) dispatch_floating(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::f32: return f(TypeTag<float>{});
    case DType::f64: return f(TypeTag<double>{});
    case DType::bf16: return f(TypeTag<bfloat16>{});
    default: fail(op, ": expected a floating dtype (f32, f64, bf16), got ", name_of(dtype));
  }
}

/// Calls f(TypeTag<T>{}) with the C++ type of any dtype.
template <class F>
decltype(auto) dispatch_all(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::i32: return f(TypeTag<std::int32_t>{});
    case DType::i64: return f(TypeTag<std::int64_t>{});
    case DType::boolean: return f(TypeTag<bool>{});
    default: return dispatch_floating(dtype, op, static_cast<F&&>(f));
  }
}

}  // namespace switchyard
