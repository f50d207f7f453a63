#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace switchyard::cuda {

/// Loads four 8 x 8 blocks of bf16 from shared memory; lanes 8 n .. 8 n + 7 give the row addresses of block n. Lane
/// (g, t) = (lane / 4, lane % 4) gets elements (g, 2t) and (g, 2t + 1) of each, or with kTransposed (2t, g), (2t + 1,
/// g).
template <bool kTransposed>
__device__ inline void load_blocks(std::uint32_t (&out)[4], const __nv_bfloat16* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
}

/// Transposes an 8 x 8 block of bf16 that a warp holds: lane (g, t) gives elements (g, 2t) and (g, 2t + 1) and gets
/// (2t, g) and (2t + 1, g).
__device__ inline std::uint32_t transpose_block(std::uint32_t values) {
  std::uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(values));
  return result;
}

/// sums += a b on a tensor core: a 16 x 16, b 16 x 8. Lane (g, t) holds sums (g, 2t), (g, 2t + 1), (g + 8, 2t),
/// (g + 8, 2t + 1).
__device__ inline void multiply_blocks(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                       std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two floats as neighbouring bf16, the first in the lower half.
__device__ inline std::uint32_t pack_bf16(float first, float second) {
  const __nv_bfloat162 packed = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const std::uint32_t*>(&packed);
}

/// Starts copying kBytes (16 or 8) from global to shared memory, or writing as many zero bytes where `valid` is false.
/// Both addresses are aligned to kBytes, `to` is as shared_address() gives it; `from` must be readable only where
/// valid.
template <int kBytes>
__device__ inline void copy_async_to(std::uint32_t to, const void* from, bool valid) {
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
  else asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(valid ? 8 : 0));
}
template <int kBytes = 16>
__device__ inline void copy_async(void* to, const void* from, bool valid) {
  copy_async_to<kBytes>(static_cast<std::uint32_t>(__cvta_generic_to_shared(to)), from, valid);
}
/// Ends a group of copies; groups complete in order.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;"); }
/// Waits until at most kPending of the youngest groups are unfinished.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending));
}

}  // namespace switchyard::cuda
