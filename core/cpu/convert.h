#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace switchyard::cpu {

/// Copies `count` elements, converted, from one strided run to another; strides in elements. The runs do not overlap.
using ConvertFunction = void (*)(const std::byte* from, std::int64_t from_stride, std::byte* to, std::int64_t to_stride,
                                 std::int64_t count);

/// The conversion from one dtype to another, a plain copy where they are equal. Kernels that compute in one type read
/// and write the others through it, a block at a time, instead of being compiled for every combination.
/// To bool: value != 0. A floating value outside an integer type's range gives an unspecified integer.
ConvertFunction convert_function(DType from, DType to);

}  // namespace switchyard::cpu
