#pragma once

#include <cuda.h>

#include <cstdint>
#include <initializer_list>

namespace switchyard::cuda {

/// How Hopper's copy engine sees a bf16 tensor of up to five axes, fastest first. It copies boxes of 64 x `box_lines`
/// elements of the first two axes; in shared memory a box is box_lines lines of 128 bytes, swizzled as in
/// cuda/device/wgmma.cuh. What a box covers outside the tensor arrives as zeros. `base` and the strides (from the
/// second axis on, in elements) must be aligned to 16 bytes, box_lines is at most 256.
CUtensorMap tensor_map(const void* base, std::initializer_list<std::int64_t> sizes,
                       std::initializer_list<std::int64_t> strides, int box_lines);

}  // namespace switchyard::cuda
