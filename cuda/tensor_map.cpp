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

CUtensorMap tensor_map(const void* base, std::initializer_list<std::int64_t> sizes,
                       std::initializer_list<std::int64_t> strides, int box_lines) {
  constexpr std::size_t kMostAxes = 5;
  const std::size_t axes = sizes.size();
  check(axes >= 2 && axes <= kMostAxes && strides.size() == axes - 1, "cuda: a tensor map of ", axes, " axes and ",
        strides.size(), " strides, expected 2 to 5 axes");
  CUtensorMap map;
  cuuint64_t counts[kMostAxes], stride_bytes[kMostAxes];
  cuuint32_t box[kMostAxes] = {64, static_cast<cuuint32_t>(box_lines), 1, 1, 1};
  const cuuint32_t steps[kMostAxes] = {1, 1, 1, 1, 1};
  for (std::size_t i = 0; i < axes; ++i) counts[i] = static_cast<cuuint64_t>(sizes.begin()[i]);
  for (std::size_t i = 0; i + 1 < axes; ++i) stride_bytes[i] = static_cast<cuuint64_t>(strides.begin()[i]) * 2;
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(axes), const_cast<void*>(base), counts,
                stride_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "cuda: cuTensorMapEncodeTiled refused a tensor of ", axes, " axes, the slowest of ",
        sizes.end()[-1], " (error ", static_cast<int>(result), ")");
  return map;
}

}  // namespace switchyard::cuda
