// Linear maps of a single token, as in decoding. A warp computes one output, and as many warps as there is room for
// keep the weights' bytes on their way, beginning before the token is there. cuBLAS takes up to twice as long.

#include "cuda/access.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/dot.cuh"
#include "cuda/launch.cuh"
#include "cuda/launch_early.cuh"
#include "cuda/linear_one_row.h"

namespace switchyard::cuda {
namespace {

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / 32;

template <class D, class Out>
struct Map {
  const D *x, *w, *bias;  // bias may be null
  Out* out;
  std::int64_t w_stride;
  int inputs, outputs;
  bool fetches;
  ops::Activation activation;
};

template <class D, class Out>
__global__ void __launch_bounds__(kRowThreads) one_output_per_warp(Map<D, Out> p) {
  let_next_begin();
  const int output = blockIdx.x * kRowWarps + threadIdx.x / 32;
  if (output >= p.outputs) return;
  const D* weights = p.w + output * p.w_stride;
  if (p.fetches && threadIdx.x % 32 == 0) prefetch(weights, p.inputs);
  wait_for_previous();
  auto sum = dot<32, 16 / sizeof(D), 4>(p.x, weights, p.inputs);
  if (p.bias) sum += load(p.bias + output);
  if (threadIdx.x % 32 == 0) p.out[output] = convert<Out>(apply_rare_unary(p.activation, sum));
}

/// Whether every row of x begins and ends on a boundary of 16 bytes.
bool is_wide(const Tensor& x) {
  const auto bytes = [&](std::int64_t elements) { return elements * static_cast<std::int64_t>(size_of(x.dtype())); };
  return x.stride(1) == 1 && (x.size(0) == 1 || bytes(x.stride(0)) % 16 == 0) &&
         divides_rows(16, bytes(x.size(1)), {&x});
}

}  // namespace

bool has_one_row(const Tensor& x, const Tensor& w) { return x.size(0) == 1 && is_wide(x) && is_wide(w); }

void linear_one_row(const Tensor& x, const Tensor& w, const Tensor& bias, ops::Activation activation,
                    const Tensor& out) {
  const Context& ctx = context(x.device());
  const bool fetches = static_cast<std::int64_t>(w.bytes()) <= ctx.cache_bytes / 8;
  const auto launch = [&](auto in, auto result) {
    using T = typename decltype(in)::type;
    using R = typename decltype(result)::type;
    const Map<device_t<T>, device_t<R>> map{pointer<T>(x),
                                            pointer<T>(w),
                                            pointer<T>(bias),
                                            pointer<R>(out),
                                            w.stride(0),
                                            static_cast<int>(x.size(1)),
                                            static_cast<int>(out.size(1)),
                                            fetches,
                                            activation};
    launch_early(one_output_per_warp<device_t<T>, device_t<R>>, blocks_for(out.size(1), kRowWarps), kRowThreads, 0, ctx,
                 map);
  };
  dispatch_floating(x.dtype(), "linear", [&](auto in) {
    if constexpr (std::is_same_v<decltype(in), TypeTag<bfloat16>>)
      if (out.dtype() == DType::f32) return launch(in, TypeTag<float>{});
    launch(in, in);
  });
}

}  // namespace switchyard::cuda
