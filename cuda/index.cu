// Embedding and gathers. The embedding's gradient sorts the positions by word with the routing plan's counting sort and
// cuts them into chunks of equal length, so that a word of every other sentence holds nobody up. What a chunk has of a
// word goes to the table if that is all of it, else to a buffer, which a second kernel adds up in order: no atomics, so
// the result does not vary.

#include "core/kernels/index.h"
#include "core/ops/routing.h"
#include "cuda/access.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

/// What an id outside the table gives: NaN, or 0 where there is none.
template <class D>
__device__ D missing() {
  if constexpr (std::is_integral_v<D>) return 0;
  else return convert<D>(compute_t<D>(NAN));
}

template <int kWidth, class D>
__global__ void embedding_rows(const D* table, const std::int64_t* ids, std::int64_t rows, std::int64_t width, D* out) {
  using Piece = Vector<D, kWidth>;
  const std::int64_t id = ids[blockIdx.x];
  const bool valid = id >= 0 && id < rows;
  Piece none;
  for (D& value : none.values) value = missing<D>();
  for (std::int64_t i = threadIdx.x * kWidth; i < width; i += blockDim.x * kWidth)
    *reinterpret_cast<Piece*>(out + blockIdx.x * width + i) =
        valid ? *reinterpret_cast<const Piece*>(table + id * width + i) : none;
}

constexpr int kChunk = 32;  // positions
constexpr int kAhead = 8;   // rows read before the first is used

/// Positions sorted by word: those of word w are order[offsets[w]] .. order[offsets[w + 1] - 1].
struct SortedPositions {
  const std::int64_t* ids;
  const std::int32_t *offsets, *order;
  std::int64_t words;
};

/// A block per chunk. partial [chunks, 2, width]: row 0 is of the word that an earlier chunk begins, row 1 of one that
/// goes on in the next.
template <int kWidth, class D>
__global__ void sum_chunks(SortedPositions sorted, const D* dy, std::int64_t width, compute_t<D>* partial, D* dtable) {
  using A = compute_t<D>;
  __shared__ int word_of[kChunk + 1], position_of[kChunk];
  const int first = blockIdx.x * kChunk, count = min(kChunk, sorted.offsets[sorted.words] - first);
  for (int i = threadIdx.x; i <= kChunk; i += blockDim.x) {
    if (i < count) position_of[i] = sorted.order[first + i];
    word_of[i] = i < count ? static_cast<int>(sorted.ids[sorted.order[first + i]]) : -1;
  }
  __syncthreads();
  for (std::int64_t column = threadIdx.x * kWidth; column < width; column += blockDim.x * kWidth) {
    Vector<A, kWidth> sum{};
    for (int begin = 0; begin < count; begin += kAhead) {
      Vector<D, kWidth> rows[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (begin + j < count)
          rows[j] = *reinterpret_cast<const Vector<D, kWidth>*>(dy + position_of[begin + j] * width + column);
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (begin + j >= count) break;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sum.values[i] += load(&rows[j].values[i]);
        const int word = word_of[begin + j];
        if (word_of[begin + j + 1] == word) continue;
        const bool starts = sorted.offsets[word] >= first, ends = sorted.offsets[word + 1] <= first + count;
        if (starts && ends) {
          Vector<D, kWidth> rounded;
#pragma unroll
          for (int i = 0; i < kWidth; ++i) rounded.values[i] = convert<D>(sum.values[i]);
          *reinterpret_cast<Vector<D, kWidth>*>(dtable + word * width + column) = rounded;
        } else {
          *reinterpret_cast<Vector<A, kWidth>*>(partial + (2 * blockIdx.x + (starts ? 1 : 0)) * width + column) = sum;
        }
        sum = {};
      }
    }
  }
}

/// A block per word: the sum of its chunks where it has several, 0 where it does not occur.
template <class D>
__global__ void join_chunks(SortedPositions sorted, const compute_t<D>* partial, std::int64_t width, D* dtable) {
  const int begin = sorted.offsets[blockIdx.x], end = sorted.offsets[blockIdx.x + 1];
  const int first = begin / kChunk, last = end > begin ? (end - 1) / kChunk : first;
  if (end > begin && first == last) return;
  for (std::int64_t column = threadIdx.x; column < width; column += blockDim.x) {
    compute_t<D> sum = end > begin ? partial[(2 * first + 1) * width + column] : compute_t<D>(0);
#pragma unroll 8
    for (int chunk = first + 1; chunk <= last; ++chunk) sum += partial[2 * chunk * width + column];
    dtable[blockIdx.x * width + column] = convert<D>(sum);
  }
}

/// Threads for rows of `pieces`.
int threads_for(std::int64_t pieces) {
  return static_cast<int>(std::clamp<std::int64_t>((pieces + 31) / 32, 1, 8)) * 32;
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
  const std::int64_t width = table.size(1);
  dispatch_all(table.dtype(), "embedding", [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access<T, 16, 8>(width, {&table, &out}, [&](auto access) {
      embedding_rows<access.value>
          <<<blocks_for(ids.numel(), 1), threads_for(width / access.value), 0, stream_of(out)>>>(
              pointer<T>(table), ids.data<std::int64_t>(), table.size(0), width, pointer<T>(out));
    });
  });
  check_launch("embedding");
}

void embedding_backward(const Tensor& dy, const Tensor& ids, const Tensor& dtable) {
  const std::int64_t words = dtable.size(0), width = dtable.size(1);
  if (dtable.numel() == 0) return;
  const ops::RoutingPlan plan = ops::routing_plan(ids.view({-1, 1}).to(DType::i32), words);
  const SortedPositions sorted{ids.data<std::int64_t>(), plan.expert_offsets.data<std::int32_t>(),
                               plan.pair_to_choice.data<std::int32_t>(), words};
  const unsigned chunks = blocks_for(ids.numel(), kChunk);
  const cudaStream_t stream = stream_of(dy);
  dispatch_floating(dy.dtype(), "embedding_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const Tensor partial = Tensor::empty({chunks, 2, width}, dtype_of<A>(), dy.device());
    if (chunks > 0)
      with_access<T, 16, 8>(width, {&dy, &dtable}, [&](auto access) {
        sum_chunks<access.value><<<chunks, threads_for(width / access.value), 0, stream>>>(
            sorted, pointer<T>(dy), width, pointer<A>(partial), pointer<T>(dtable));
      });
    check_launch("embedding_backward");
    join_chunks<<<blocks_for(words, 1), threads_for(width), 0, stream>>>(sorted, pointer<A>(partial), width,
                                                                         pointer<T>(dtable));
  });
  check_launch("embedding_backward");
}

void gather_last(const Tensor& x, const Tensor& index, const Tensor& out) {
  if (out.numel() == 0) return;
  dispatch_all(x.dtype(), "gather_last", [&](auto tag) {
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
