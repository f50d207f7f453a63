#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

// Hopper's matrix instructions and barriers (sm_90a). A warpgroup, four consecutive warps that start at a multiple of
// four, multiplies A [64, 16] by B [16, N] and adds to sums that lie in its registers. B is read from shared memory, A
// from shared memory or registers. The instruction runs asynchronously:
//
//   wgmma_fence();                                       // registers and earlier products are in order
//   Wgmma<128>::multiply<Major::depth, Major::depth>(sums, a, b, true);   // any number of them
//   wgmma_commit();                                      // these are one group
//   wgmma_wait<0>();                                     // at most 0 groups unfinished: sums may be read
//
// Between commit and wait neither `sums` nor registers given as A may be touched; the compiler reports where it had to
// wait on its own (warnings C7510 and neighbours). Shared memory written by ordinary stores or cp.async needs
// fence_async_proxy() before the products read it: by the writers before the barrier, or by the readers after it.
//
// Operands in shared memory. A line is 128 bytes: 64 values. Eight lines are a block of 1024 bytes, aligned to 1024.
// Within a line the 16-byte vectors are permuted (the "128-byte swizzle"): vector v of line r lies at place
// v ^ (r % 8), so that one column of vectors falls into all banks. swizzled(r, v) is that offset.
//
//   Major::depth   a line holds 64 steps of the depth for one row of A (one column of B); line r is row r.
//                  depth_operand(tile); the next 16 of the depth are 32 bytes further: depth_operand(tile + 16 k).
//   Major::wide    a line holds 64 rows of A (columns of B) for one step of the depth; line k is step k. Operands of
//                  more than 64 rows or columns are several such panels, `panel_bytes` apart.
//                  wide_operand(panel, panel_bytes); the next 16 of the depth are 16 lines, 2048 bytes, further.

namespace switchyard::cuda {

/// Along which axis an operand in shared memory is contiguous.
enum class Major { depth, wide };

constexpr int kLineValues = 64;  // bf16 values in a line of 128 bytes

/// Offset in elements of 16-byte vector `vector` (0..7) of line `line`, from a base aligned to 1024 bytes.
__device__ constexpr int swizzled(int line, int vector) { return line * kLineValues + (vector ^ (line % 8)) * 8; }

__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// The matrix descriptor: address, leading and stride offset in units of 16 bytes, and the 128-byte swizzle.
__device__ inline std::uint64_t matrix_descriptor(const void* start, std::uint32_t leading_bytes,
                                                  std::uint32_t stride_bytes) {
  return static_cast<std::uint64_t>((shared_address(start) & 0x3ffff) >> 4) |
         static_cast<std::uint64_t>(leading_bytes >> 4) << 16 | static_cast<std::uint64_t>(stride_bytes >> 4) << 32 |
         std::uint64_t{1} << 62;
}
/// Rows of A or columns of B as lines; blocks of eight lines follow each other.
__device__ inline std::uint64_t depth_operand(const __nv_bfloat16* start) { return matrix_descriptor(start, 16, 1024); }
/// Steps of the depth as lines; the next 64 rows or columns lie `panel_bytes` further.
__device__ inline std::uint64_t wide_operand(const __nv_bfloat16* start, std::uint32_t panel_bytes) {
  return matrix_descriptor(start, panel_bytes, 1024);
}

/// Before the first product, and whenever registers of sums or A were written since the last one.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Ends a group of products; groups complete in order.
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most kPending of the youngest groups are unfinished.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// sums += A B, or sums = A B where `accumulate` is false, for N a multiple of 16 up to 256. Lane (g, t) = (lane / 4,
/// lane % 4) of warp w holds in sums[4 n + 2 h + i] the element of row 16 w + g + 8 h and column 8 n + 2 t + i. A in
/// registers is laid out alike: a[h + 2 v] holds columns 8 v + 2 t and 8 v + 2 t + 1 of row 16 w + g + 8 h, so sums
/// 8 m .. 8 m + 7 of one product, packed in pairs, are A of depth 16 m .. 16 m + 15 of the next.
template <int N>
struct Wgmma;

// Inline assembly wants every register by name: the names and the operands, eight registers (16 columns) at a time.
// clang-format off
#define SWITCHYARD_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SWITCHYARD_NAMES_32 SWITCHYARD_NAMES_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SWITCHYARD_NAMES_48 SWITCHYARD_NAMES_32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SWITCHYARD_NAMES_64 SWITCHYARD_NAMES_48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SWITCHYARD_NAMES_80 SWITCHYARD_NAMES_64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SWITCHYARD_NAMES_96 SWITCHYARD_NAMES_80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SWITCHYARD_NAMES_112 SWITCHYARD_NAMES_96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define SWITCHYARD_NAMES_128 SWITCHYARD_NAMES_112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define SWITCHYARD_NAMES_144 SWITCHYARD_NAMES_128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define SWITCHYARD_NAMES_160 SWITCHYARD_NAMES_144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define SWITCHYARD_NAMES_176 SWITCHYARD_NAMES_160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define SWITCHYARD_NAMES_192 SWITCHYARD_NAMES_176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define SWITCHYARD_NAMES_208 SWITCHYARD_NAMES_192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define SWITCHYARD_NAMES_224 SWITCHYARD_NAMES_208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define SWITCHYARD_NAMES_240 SWITCHYARD_NAMES_224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define SWITCHYARD_NAMES_256 SWITCHYARD_NAMES_240 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define SWITCHYARD_SUMS(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), \
  "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define SWITCHYARD_SUMS_16 SWITCHYARD_SUMS(0)
#define SWITCHYARD_SUMS_32 SWITCHYARD_SUMS_16, SWITCHYARD_SUMS(8)
#define SWITCHYARD_SUMS_48 SWITCHYARD_SUMS_32, SWITCHYARD_SUMS(16)
#define SWITCHYARD_SUMS_64 SWITCHYARD_SUMS_48, SWITCHYARD_SUMS(24)
#define SWITCHYARD_SUMS_80 SWITCHYARD_SUMS_64, SWITCHYARD_SUMS(32)
#define SWITCHYARD_SUMS_96 SWITCHYARD_SUMS_80, SWITCHYARD_SUMS(40)
#define SWITCHYARD_SUMS_112 SWITCHYARD_SUMS_96, SWITCHYARD_SUMS(48)
#define SWITCHYARD_SUMS_128 SWITCHYARD_SUMS_112, SWITCHYARD_SUMS(56)
#define SWITCHYARD_SUMS_144 SWITCHYARD_SUMS_128, SWITCHYARD_SUMS(64)
#define SWITCHYARD_SUMS_160 SWITCHYARD_SUMS_144, SWITCHYARD_SUMS(72)
#define SWITCHYARD_SUMS_176 SWITCHYARD_SUMS_160, SWITCHYARD_SUMS(80)
#define SWITCHYARD_SUMS_192 SWITCHYARD_SUMS_176, SWITCHYARD_SUMS(88)
#define SWITCHYARD_SUMS_208 SWITCHYARD_SUMS_192, SWITCHYARD_SUMS(96)
#define SWITCHYARD_SUMS_224 SWITCHYARD_SUMS_208, SWITCHYARD_SUMS(104)
#define SWITCHYARD_SUMS_240 SWITCHYARD_SUMS_224, SWITCHYARD_SUMS(112)
#define SWITCHYARD_SUMS_256 SWITCHYARD_SUMS_240, SWITCHYARD_SUMS(120)

// p0 .. p6: the numbers of the operands after the sums.
#define SWITCHYARD_WGMMA(N, p0, p1, p2, p3, p4, p5, p6)                                                               \
  template <>                                                                                                         \
  struct Wgmma<N> {                                                                                                   \
    template <Major a_major, Major b_major>                                                                           \
    static __device__ void multiply(float (&sums)[N / 2], std::uint64_t a, std::uint64_t b, bool accumulate) {        \
      asm volatile("{.reg .pred p; setp.ne.b32 p, %" #p2 ", 0;\n"                                                     \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SWITCHYARD_NAMES_##N "}, %" #p0        \
                   ", %" #p1 ", p, 1, 1, %" #p3 ", %" #p4 ";}\n"                                                      \
                   : SWITCHYARD_SUMS_##N                                                                              \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(a_major == Major::wide),                  \
                     "n"(b_major == Major::wide));                                                                    \
    }                                                                                                                 \
    template <Major b_major>                                                                                          \
    static __device__ void multiply(float (&sums)[N / 2], const std::uint32_t (&a)[4], std::uint64_t b,               \
                                    bool accumulate) {                                                                \
      asm volatile("{.reg .pred p; setp.ne.b32 p, %" #p5 ", 0;\n"                                                     \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SWITCHYARD_NAMES_##N "}, {%" #p0       \
                   ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4 ", p, 1, 1, %" #p6 ";}\n"                                 \
                   : SWITCHYARD_SUMS_##N                                                                              \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),           \
                     "n"(b_major == Major::wide));                                                                    \
    }                                                                                                                 \
  };
SWITCHYARD_WGMMA(16, 8, 9, 10, 11, 12, 13, 14)
SWITCHYARD_WGMMA(32, 16, 17, 18, 19, 20, 21, 22)
SWITCHYARD_WGMMA(48, 24, 25, 26, 27, 28, 29, 30)
SWITCHYARD_WGMMA(64, 32, 33, 34, 35, 36, 37, 38)
SWITCHYARD_WGMMA(80, 40, 41, 42, 43, 44, 45, 46)
SWITCHYARD_WGMMA(96, 48, 49, 50, 51, 52, 53, 54)
SWITCHYARD_WGMMA(112, 56, 57, 58, 59, 60, 61, 62)
SWITCHYARD_WGMMA(128, 64, 65, 66, 67, 68, 69, 70)
SWITCHYARD_WGMMA(144, 72, 73, 74, 75, 76, 77, 78)
SWITCHYARD_WGMMA(160, 80, 81, 82, 83, 84, 85, 86)
SWITCHYARD_WGMMA(176, 88, 89, 90, 91, 92, 93, 94)
SWITCHYARD_WGMMA(192, 96, 97, 98, 99, 100, 101, 102)
SWITCHYARD_WGMMA(208, 104, 105, 106, 107, 108, 109, 110)
SWITCHYARD_WGMMA(224, 112, 113, 114, 115, 116, 117, 118)
SWITCHYARD_WGMMA(240, 120, 121, 122, 123, 124, 125, 126)
SWITCHYARD_WGMMA(256, 128, 129, 130, 131, 132, 133, 134)
#undef SWITCHYARD_WGMMA
#undef SWITCHYARD_SUMS
#undef SWITCHYARD_NAMES_16
#undef SWITCHYARD_SUMS_16
#undef SWITCHYARD_NAMES_32
#undef SWITCHYARD_SUMS_32
#undef SWITCHYARD_NAMES_48
#undef SWITCHYARD_SUMS_48
#undef SWITCHYARD_NAMES_64
#undef SWITCHYARD_SUMS_64
#undef SWITCHYARD_NAMES_80
#undef SWITCHYARD_SUMS_80
#undef SWITCHYARD_NAMES_96
#undef SWITCHYARD_SUMS_96
#undef SWITCHYARD_NAMES_112
#undef SWITCHYARD_SUMS_112
#undef SWITCHYARD_NAMES_128
#undef SWITCHYARD_SUMS_128
#undef SWITCHYARD_NAMES_144
#undef SWITCHYARD_SUMS_144
#undef SWITCHYARD_NAMES_160
#undef SWITCHYARD_SUMS_160
#undef SWITCHYARD_NAMES_176
#undef SWITCHYARD_SUMS_176
#undef SWITCHYARD_NAMES_192
#undef SWITCHYARD_SUMS_192
#undef SWITCHYARD_NAMES_208
#undef SWITCHYARD_SUMS_208
#undef SWITCHYARD_NAMES_224
#undef SWITCHYARD_SUMS_224
#undef SWITCHYARD_NAMES_240
#undef SWITCHYARD_SUMS_240
#undef SWITCHYARD_NAMES_256
#undef SWITCHYARD_SUMS_256
// clang-format on

/// Orders what this thread wrote, or saw written, by ordinary stores and cp.async before what the matrix units and the
/// bulk copies read from then on.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barriers in shared memory (mbarrier). A barrier goes through phases; a phase ends when `arrivals` threads, or
// asynchronous copies, have arrived and all announced bytes have come. Waiters name the parity of the phase they wait
// for: 0 for the first. Waiting for parity 1 on a fresh barrier returns at once, which is how a producer finds all
// stages empty at first.

/// By one thread, followed by fence_barriers() and __syncthreads().
__device__ inline void init_barrier(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to asynchronous copies.
__device__ inline void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void arrive(std::uint64_t* barrier, int arrivals = 1) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// One lane arrives for its warp, which costs a thirty-second of what all would. compute-sanitizer's racecheck, which
// does not follow what __syncwarp() orders through to the barrier, calls that a race, in cuBLAS's kernels as in these.
// With all lanes arriving, which is what the option SWITCHYARD_RACECHECK is for, it must find none.
#ifdef SWITCHYARD_RACECHECK
constexpr int kWarpArrivals = 32;
#else
constexpr int kWarpArrivals = 1;
#endif
/// Arrives for the warp, kWarpArrivals times. What its lanes read or wrote by ordinary instructions since they last met
/// is ordered by a __syncwarp() before.
__device__ inline void arrive_of_warp(std::uint64_t* barrier, int lane) {
  if (kWarpArrivals > 1 || lane == 0) arrive(barrier);
}
/// Arrives, and lets the phase end only after `bytes` of bulk copies.
__device__ inline void arrive_and_expect(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
/// Arrives when all cp.async that this thread has started so far are complete. It is one of the `arrivals`.
__device__ inline void arrive_after_copies(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void wait_barrier(std::uint64_t* barrier, int parity) {
  std::uint32_t done = 0;
  while (done == 0)
    asm volatile(
        "{.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;}\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
}

/// Starts the copy of a box of a tensor (cuda/tensor_map.h) from element (c0, c1, c2) on, fastest axis first. The bytes
/// of the whole box count for `barrier`. Called by one thread; `to` is aligned to 1024 bytes.
__device__ inline void copy_box(void* to, const CUtensorMap& map, int c0, int c1, int c2, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

/// The same for a tensor of four axes.
__device__ inline void copy_box(void* to, const CUtensorMap& map, int c0, int c1, int c2, int c3,
                                std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

/// Registers move between warpgroups: a warpgroup that copies gives up registers, one that multiplies takes more. Each
/// warp of the group calls it; counts are multiples of 8, and the kernel needs __launch_bounds__(threads, 1).
template <int kRegisters>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace switchyard::cuda
