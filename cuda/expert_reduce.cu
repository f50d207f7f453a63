// What follows the expert products where several pairs share an output row: sums over a row's pairs, in choice order
// and without atomics, and the gradients of the gates. All of it is bound by memory: every product is read once, in
// vectors of 16 bytes, several at a time.

#include "cuda/device/reduce.cuh"
#include "cuda/expert_reduce.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kBatch = 4;           // products that a thread reads before it adds the first
constexpr int kChoicesAtOnce = 32;  // whose parts of a gate's gradient lie in shared memory

/// Threads that share a row sum kWidth columns each; blockDim = (threads per row, rows). With kDots the threads cover
/// the row in one go, and each choice's x . product is reduced over them.
template <int kWidth, bool kDots, class D>
__global__ void __launch_bounds__(kThreads, kDots ? 4 : 6) sum_pairs(PairSum<D> s) {
  using A = compute_t<D>;
  using Values = Vector<D, kWidth>;
  __shared__ A parts[kThreads / 32][kChoicesAtOnce];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, warps_per_row = (blockDim.x + 31) / 32;
  const std::int64_t first_choice = row * s.choices_per_row;
  int column = threadIdx.x * kWidth;
  do {
    const bool active = row < s.rows && column < s.width;
    Values x{};
    if (kDots && active) x = *reinterpret_cast<const Values*>(s.x + row * s.width + column);
    A sums[kWidth] = {};
    for (int begin = 0; begin < s.choices_per_row; begin += kBatch) {
      Values values[kBatch]{};
      A gates[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const bool there = active && begin + i < s.choices_per_row;
        const int pair = there ? s.choice_to_pair[first_choice + begin + i] : -1;
        gates[i] = there && s.gates ? load(s.gates + first_choice + begin + i) : A(1);
        if (pair >= 0)
          values[i] = *reinterpret_cast<const Values*>(s.products + static_cast<std::int64_t>(pair) * s.width + column);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        A dot = 0;
#pragma unroll
        for (int n = 0; n < kWidth; ++n) {
          const A value = load(&values[i].values[n]);
          sums[n] += gates[i] * value;
          if constexpr (kDots) dot += load(&x.values[n]) * value;
        }
        if constexpr (kDots) {
          for (int distance = min(blockDim.x, 32) / 2; distance > 0; distance /= 2)
            dot += __shfl_xor_sync(0xffffffffu, dot, distance);
          const int choice = begin + i;
          if (warps_per_row > 1) {
            if (thread % 32 == 0) parts[thread / 32][choice % kChoicesAtOnce] = dot;
          } else if (threadIdx.x == 0 && row < s.rows && choice < s.choices_per_row) {
            s.store_gate_gradient(first_choice + choice, dot);
          }
        }
      }
      if constexpr (kDots) {
        const int end = begin + kBatch;
        if (warps_per_row == 1 || (end < s.choices_per_row && end % kChoicesAtOnce != 0)) continue;
        __syncthreads();
        const int first = begin / kChoicesAtOnce * kChoicesAtOnce;
        if (threadIdx.x < kChoicesAtOnce && first + threadIdx.x < s.choices_per_row && row < s.rows) {
          A dot = 0;
          for (int warp = 0; warp < warps_per_row; ++warp)
            dot += parts[threadIdx.y * warps_per_row + warp][threadIdx.x];
          s.store_gate_gradient(first_choice + first + threadIdx.x, dot);
        }
        __syncthreads();
      }
    }
    if (s.out && active) {
      Values result;
#pragma unroll
      for (int n = 0; n < kWidth; ++n) result.values[n] = convert<D>(sums[n]);
      *reinterpret_cast<Values*>(s.out + row * s.width + column) = result;
    }
    column += blockDim.x * kWidth;
  } while (!kDots && column < s.width);
}

/// dgates[choice] = x[row] . product, where wanted. Then, with `weighted`, the product becomes gate * product there, or
/// 0 where x is not positive and through_relu. A warp for each choice.
template <class D>
__global__ void gate_gradients(PairSum<D> s, RowMap x_rows, bool through_relu, D* weighted) {
  using A = compute_t<D>;
  const std::int64_t choice = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (choice >= s.rows * s.choices_per_row) return;
  const int pair = s.choice_to_pair[choice];
  A sum = 0;
  if (pair >= 0) {
    const std::int64_t first = static_cast<std::int64_t>(pair) * s.width;
    const D* row = s.x + x_rows.row(pair) * s.width;
    const A gate = s.gates ? load(s.gates + choice) : A(1);
    for (int i = lane; i < s.width; i += 32) {
      const A x = load(row + i), value = load(s.products + first + i);
      sum += x * value;
      if (weighted) weighted[first + i] = convert<D>(through_relu && !(x > A(0)) ? A(0) : gate * value);
    }
  }
  sum = warp_reduce(sum, Add{});
  if (lane == 0 && s.dgates) s.store_gate_gradient(choice, sum);
}

template <class D>
__global__ void sum_dots(PairSum<D> s, const float* dots, int tiles) {
  const std::int64_t choices = s.rows * s.choices_per_row;
  const std::int64_t choice = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (choice >= choices) return;
  const int pair = s.choice_to_pair[choice];
  compute_t<D> sum = 0;
  for (int tile = 0; pair >= 0 && tile < tiles; ++tile) sum += dots[static_cast<std::int64_t>(pair) * tiles + tile];
  s.store_gate_gradient(choice, sum);
}

/// A warp for each choice.
template <class D>
__global__ void bias_products(const D* bias, const D* dy, RowMap dy_rows, const std::int32_t* choice_to_pair,
                              const std::int32_t* offsets, int experts, std::int64_t choices, int outer,
                              compute_t<D>* products) {
  const std::int64_t choice = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (choice >= choices) return;
  const int pair = choice_to_pair[choice];
  compute_t<D> sum = 0;
  if (pair >= 0) {
    int expert = 0;
    for (int last = experts; last - expert > 1;) {
      const int middle = (expert + last) / 2;
      (offsets[middle] <= pair ? expert : last) = middle;
    }
    const D* gradient = dy + dy_rows.row(pair) * outer;
    for (int i = lane; i < outer; i += 32)
      sum += load(bias + static_cast<std::int64_t>(expert) * outer + i) * load(gradient + i);
  }
  sum = warp_reduce(sum, Add{});
  if (lane == 0) products[choice] = sum;
}

}  // namespace

template <class D>
void launch_sum_pairs(const PairSum<D>& s, RowMap x_rows, cudaStream_t stream) {
  if (s.rows == 0) return;
  const auto launch = [&](auto access) {
    constexpr int kWidth = access.value;
    int threads = 1;  // per row: a power of two, so that warps hold whole rows or rows whole warps
    while (threads < kThreads && threads * kWidth < s.width) threads *= 2;
    const dim3 block(threads, kThreads / threads), grid(blocks_for(s.rows, block.y));
    const bool in_one_go = threads * kWidth >= s.width;
    if (!s.dgates) {
      sum_pairs<kWidth, false><<<grid, block, 0, stream>>>(s);
    } else if (in_one_go) {
      sum_pairs<kWidth, true><<<grid, block, 0, stream>>>(s);
    } else {
      launch_gate_gradients<D>(s, x_rows, false, nullptr, stream);
      if (s.out) sum_pairs<kWidth, false><<<grid, block, 0, stream>>>(s);
    }
  };
  constexpr int kWide = 16 / sizeof(D);  // rows of new tensors are as aligned as their width
  if (s.width % kWide == 0) launch(std::integral_constant<int, kWide>{});
  else if (s.width % (kWide / 2) == 0) launch(std::integral_constant<int, kWide / 2>{});
  else launch(std::integral_constant<int, 1>{});
  check_launch("expert_matmul: sum over pairs");
}

template <class D>
void launch_gate_gradients(const PairSum<D>& s, RowMap x_rows, bool through_relu, D* weighted, cudaStream_t stream) {
  if (s.rows * s.choices_per_row == 0) return;
  gate_gradients<<<blocks_for(s.rows * s.choices_per_row, kThreads / 32), kThreads, 0, stream>>>(
      s, x_rows, through_relu, weighted);
  check_launch("expert_matmul_input_backward: gates");
}

template <class D>
void launch_sum_dots(const PairSum<D>& s, const float* dots, int tiles, cudaStream_t stream) {
  if (s.rows * s.choices_per_row == 0) return;
  sum_dots<<<blocks_for(s.rows * s.choices_per_row, kThreads), kThreads, 0, stream>>>(s, dots, tiles);
  check_launch("expert_matmul_input_backward: gates");
}

template <class D>
void launch_bias_products(const D* bias, const D* dy, RowMap dy_rows, const PairSum<D>& s, const std::int32_t* offsets,
                          int experts, int outer, compute_t<D>* products, cudaStream_t stream) {
  const std::int64_t choices = s.rows * s.choices_per_row;
  if (choices == 0) return;
  bias_products<<<blocks_for(choices, kThreads / 32), kThreads, 0, stream>>>(
      bias, dy, dy_rows, s.choice_to_pair, offsets, experts, choices, outer, products);
  check_launch("expert_matmul_input_backward: bias");
}

#define SWITCHYARD_INSTANTIATE(D)                                                                                  \
  template void launch_sum_pairs(const PairSum<D>&, RowMap, cudaStream_t);                                         \
  template void launch_gate_gradients(const PairSum<D>&, RowMap, bool, D*, cudaStream_t);                          \
  template void launch_sum_dots(const PairSum<D>&, const float*, int, cudaStream_t);                               \
  template void launch_bias_products(const D*, const D*, RowMap, const PairSum<D>&, const std::int32_t*, int, int, \
                                     compute_t<D>*, cudaStream_t);
SWITCHYARD_INSTANTIATE(float)
SWITCHYARD_INSTANTIATE(double)
SWITCHYARD_INSTANTIATE(__nv_bfloat16)
#undef SWITCHYARD_INSTANTIATE

}  // namespace switchyard::cuda
