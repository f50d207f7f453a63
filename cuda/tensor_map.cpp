#include "cuda/tensor_map.h"

#include <cudaTypedefs.h>

#include "cuda/check.h"

namespace switchyard::cuda {
namespace {

/// The driver's function, asked of the runtime, so that programs need not link the driver's library.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
               "cudaGetDriverEntryPointByVersion");
    check(result == cudaDriverEntryPointSuccess, "cuda: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  return function;
}

}  // namespace

CUtensorMap tensor_map(const void* base, const std::array<std::int64_t, 3>& sizes,
                       const std::array<std::int64_t, 2>& strides, int box_lines) {
  CUtensorMap map;
  const cuuint64_t axes[3] = {static_cast<cuuint64_t>(sizes[0]), static_cast<cuuint64_t>(sizes[1]),
                              static_cast<cuuint64_t>(sizes[2])};
  const cuuint64_t stride_bytes[2] = {static_cast<cuuint64_t>(strides[0]) * 2, static_cast<cuuint64_t>(strides[1]) * 2};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_lines), 1}, steps[3] = {1, 1, 1};
  const CUresult result = encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(base), axes,
                                    stride_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "cuda: cuTensorMapEncodeTiled refused a tensor of ", sizes[2], " x ", sizes[1], " x ",
        sizes[0], " elements with strides ", strides[1], ", ", strides[0], " (error ", static_cast<int>(result), ")");
  return map;
}

}  // namespace switchyard::cuda
