#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

namespace switchyard::cuda {

/// How Hopper's copy engine sees a bf16 tensor of three axes, fastest first. It copies boxes of 64 x `box_lines` x 1
/// elements; in shared memory a box is box_lines lines of 128 bytes, swizzled as in cuda/device/wgmma.cuh. What a box
/// covers outside the tensor arrives as zeros. `base` and the strides (of the second and third axis, in elements) must
/// be aligned to 16 bytes, box_lines is at most 256.
CUtensorMap tensor_map(const void* base, const std::array<std::int64_t, 3>& sizes,
                       const std::array<std::int64_t, 2>& strides, int box_lines);

}  // namespace switchyard::cuda
