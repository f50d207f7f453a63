#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "core/tensor.h"

namespace switchyard::cuda {

/// Whether rows of `row_bytes`, one behind the other in each of the tensors, can be moved in pieces of `bytes`.
/// Undefined tensors can.
inline bool divides_rows(std::int64_t bytes, std::int64_t row_bytes, std::initializer_list<const Tensor*> tensors) {
  return row_bytes % bytes == 0 && std::all_of(tensors.begin(), tensors.end(), [&](const Tensor* x) {
           return !x->defined() || reinterpret_cast<std::uintptr_t>(x->raw()) % static_cast<std::uintptr_t>(bytes) == 0;
         });
}

/// Calls f with how many neighbouring elements of rows of `width` T threads move at once, an integral_constant: as many
/// as fill the first of kBytes that divides_rows() of the tensors, otherwise 1.
template <class T, int... kBytes, class F>
void with_access(std::int64_t width, std::initializer_list<const Tensor*> tensors, F f) {
  constexpr int kSize = sizeof(T);
  const auto taken = [&](auto elements) {
    const bool fits = elements.value == 1 || divides_rows(elements.value * kSize, width * kSize, tensors);
    if (fits) f(elements);
    return fits;
  };
  static_cast<void>((taken(std::integral_constant<int, std::max(1, kBytes / kSize)>{}) || ... ||
                     taken(std::integral_constant<int, 1>{})));
}

}  // namespace switchyard::cuda
