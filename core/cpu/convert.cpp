#include "core/cpu/convert.h"

#include <cstring>

namespace switchyard::cpu {
namespace {

template <class To, class From>
To convert_value(From value) {
  if constexpr (std::is_same_v<To, From>) return value;
  else if constexpr (std::is_same_v<From, bfloat16>) return convert_value<To>(static_cast<float>(value));
  else if constexpr (std::is_same_v<To, bool>) return value != From{};
  else if constexpr (std::is_same_v<To, bfloat16>) return bfloat16(static_cast<float>(value));
  else return static_cast<To>(value);
}

template <class From, class To>
void convert(const std::byte* from_bytes, std::int64_t from_stride, std::byte* to_bytes, std::int64_t to_stride,
             std::int64_t count) {
  const From* from = reinterpret_cast<const From*>(from_bytes);
  To* to = reinterpret_cast<To*>(to_bytes);
  if (to_stride == 1 && from_stride == 0) {
    const To value = convert_value<To>(*from);
    for (std::int64_t i = 0; i < count; ++i) to[i] = value;
  } else if (to_stride == 1 && from_stride == 1) {
    if constexpr (std::is_same_v<From, To>) {
      std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(To));
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) to[i] = convert_value<To>(from[i]);
    }
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i * to_stride] = convert_value<To>(from[i * from_stride]);
  }
}

}  // namespace

ConvertFunction convert_function(DType from, DType to) {
  return dispatch_all(from, "copy", [&](auto from_tag) {
    return dispatch_all(to, "copy", [&](auto to_tag) -> ConvertFunction {
      return convert<typename decltype(from_tag)::type, typename decltype(to_tag)::type>;
    });
  });
}

}  // namespace switchyard::cpu
