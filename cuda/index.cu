// Embedding and gathers. The embedding's gradient sorts the positions by word with the routing plan's counting sort,
// then sums each word's rows in order: no atomics, so the result does not vary.

#include "core/kernels/index.h"
#include "core/ops/routing.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

template <class D>
__global__ void embedding_rows(const D* table, const std::int64_t* ids, std::int64_t rows, std::int64_t width, D* out) {
  const std::int64_t id = ids[blockIdx.x];
  const bool valid = id >= 0 && id < rows;
  for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x)
    out[blockIdx.x * width + i] = valid ? table[id * width + i] : convert<D>(compute_t<D>(NAN));
}

constexpr int kColumns = 64, kParts = 4;

/// A block per word and kColumns columns; kParts groups of threads share the word's rows.
template <class D>
__global__ void embedding_sums(const D* dy, const std::int32_t* offsets, const std::int32_t* positions,
                               std::int64_t width, D* dtable) {
  using A = compute_t<D>;
  const std::int64_t word = blockIdx.x, column = static_cast<std::int64_t>(blockIdx.y) * kColumns + threadIdx.x;
  const int first = offsets[word], last = offsets[word + 1];
  A sum = 0;
  if (column < width)
    for (int i = first + threadIdx.y; i < last; i += kParts)
      sum += load(dy + static_cast<std::int64_t>(positions[i]) * width + column);
  __shared__ A parts[kParts][kColumns];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int part = 1; part < kParts; ++part) sum += parts[part][threadIdx.x];
  dtable[word * width + column] = convert<D>(sum);
}

template <class D>
__global__ void gather_elements(const D* x, const std::int32_t* index, std::int64_t count, std::int64_t width,
                                std::int64_t k, D* out) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = x[i / k * width + index[i]];
}

/// A thread per element of dx looks for the choices that name it: rows have few of them, and sums keep their order.
template <class D>
__global__ void scatter_elements(const D* dy, const std::int32_t* index, std::int64_t count, std::int64_t width,
                                 std::int64_t k, D* dx) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const std::int64_t row = i / width, column = i % width;
  compute_t<D> sum = 0;
  for (std::int64_t j = 0; j < k; ++j)
    if (index[row * k + j] == column) sum += load(dy + row * k + j);
  dx[i] = convert<D>(sum);
}

}  // namespace

void embedding(const Tensor& table, const Tensor& ids, const Tensor& out) {
  if (out.numel() == 0) return;
  dispatch_floating(table.dtype(), "embedding", [&](auto tag) {
    using T = typename decltype(tag)::type;
    embedding_rows<<<blocks_for(ids.numel(), 1), 128, 0, stream_of(out)>>>(
        pointer<T>(table), ids.data<std::int64_t>(), table.size(0), table.size(1), pointer<T>(out));
  });
  check_launch("embedding");
}

void embedding_backward(const Tensor& dy, const Tensor& ids, const Tensor& dtable) {
  const std::int64_t rows = dtable.size(0), width = dtable.size(1);
  if (dtable.numel() == 0) return;
  const ops::RoutingPlan sorted = ops::routing_plan(ids.view({-1, 1}).to(DType::i32), rows);
  dispatch_floating(dy.dtype(), "embedding_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    embedding_sums<<<dim3(blocks_for(rows, 1), blocks_for(width, kColumns)), dim3(kColumns, kParts), 0,
                     stream_of(dy)>>>(pointer<T>(dy), sorted.expert_offsets.data<std::int32_t>(),
                                      sorted.pair_to_choice.data<std::int32_t>(), width, pointer<T>(dtable));
  });
  check_launch("embedding_backward");
}

void gather_last(const Tensor& x, const Tensor& index, const Tensor& out) {
  if (out.numel() == 0) return;
  dispatch_floating(x.dtype(), "gather_last", [&](auto tag) {
    using T = typename decltype(tag)::type;
    gather_elements<<<blocks_for(out.numel(), kThreads), kThreads, 0, stream_of(x)>>>(
        pointer<T>(x), index.data<std::int32_t>(), out.numel(), x.size(1), out.size(1), pointer<T>(out));
  });
  check_launch("gather_last");
}

void gather_last_backward(const Tensor& dy, const Tensor& index, const Tensor& dx) {
  if (dx.numel() == 0) return;
  dispatch_floating(dy.dtype(), "gather_last_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    scatter_elements<<<blocks_for(dx.numel(), kThreads), kThreads, 0, stream_of(dy)>>>(
        pointer<T>(dy), index.data<std::int32_t>(), dx.numel(), dx.size(1), dy.size(1), pointer<T>(dx));
  });
  check_launch("gather_last_backward");
}

}  // namespace switchyard::cuda
