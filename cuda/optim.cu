// Optimiser updates over all parameters in few launches. Tensors are cut into pieces, a block each; the
// table of tensors travels as a kernel argument. AdamW reads gradient, weights and both moments and writes the last
// three: 28 bytes an element, in fp32 as well as in bf16 with a copy in fp32.

#include "core/kernels/optim.h"
#include "cuda/device/reduce.cuh"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kTableSize = 48;  // keeps a launch's arguments below 4 KiB

/// Up to kTableSize tensors and the number of the first piece of each. An Entry says how many elements a piece has.
template <class Entry>
struct Table {
  int count = 0;
  std::int64_t first_piece[kTableSize + 1] = {0};
  Entry entries[kTableSize];

  /// The tensor that piece `piece` belongs to, and where in it the piece begins.
  __device__ int find(std::int64_t piece, std::int64_t* begin) const {
    int entry = 0;
    while (first_piece[entry + 1] <= piece) ++entry;
    *begin = (piece - first_piece[entry]) * Entry::kPiece;
    return entry;
  }
};

/// Fills tables and calls launch(table, pieces) for each. to_entry gives an entry; entries have a `numel`.
template <class Entry, class Slot, class ToEntry, class Launch>
void for_tables(const std::vector<Slot>& slots, ToEntry to_entry, Launch launch) {
  Table<Entry> table;
  const auto flush = [&] {
    if (table.first_piece[table.count] > 0) launch(table, static_cast<unsigned>(table.first_piece[table.count]));
    table = {};
  };
  for (const Slot& slot : slots) {
    if (table.count == kTableSize) flush();
    const Entry entry = to_entry(slot);
    table.entries[table.count] = entry;
    table.first_piece[table.count + 1] =
        table.first_piece[table.count] + (entry.numel + Entry::kPiece - 1) / Entry::kPiece;
    ++table.count;
  }
  flush();
}

/// Calls f(width, i) for neighbours i .. i + width - 1 that cover begin..end over the block: kWidth at a time where
/// addresses allow, else one.
template <int kWidth, class F>
__device__ inline void for_vectors(bool aligned, std::int64_t begin, std::int64_t end, F f) {
  const std::int64_t middle = aligned ? end - (end - begin) % kWidth : begin;
#pragma unroll 4
  for (std::int64_t i = begin + threadIdx.x * kWidth; i < middle; i += blockDim.x * kWidth)
    f(std::integral_constant<int, kWidth>{}, i);
  for (std::int64_t i = middle + threadIdx.x; i < end; i += blockDim.x) f(std::integral_constant<int, 1>{}, i);
}

template <int kWidth, class T>
__device__ inline Vector<T, kWidth>& vector_at(T* elements, std::int64_t i) {
  return *reinterpret_cast<Vector<T, kWidth>*>(elements + i);
}
template <int kWidth, class T>
__device__ inline const Vector<T, kWidth>& vector_at(const T* elements, std::int64_t i) {
  return *reinterpret_cast<const Vector<T, kWidth>*>(elements + i);
}

bool all_aligned(std::initializer_list<Tensor> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor& t) {
    return !t.defined() || reinterpret_cast<std::uintptr_t>(t.raw()) % 16 == 0;
  });
}

template <class W, class G>
struct AdamWEntry {
  static constexpr std::int64_t kPiece = 4096;
  std::int64_t numel;
  W* weights;
  const G* gradient;
  W *first_moment, *second_moment;
  __nv_bfloat16* rounded;  // the parameter of a master copy, else null
  double weight_decay;
  bool aligned;
};

/// What an update reads of the step, worked out once: powers in double are dear.
struct AdamWStep {
  double rate, step_size, inverse_root, scale;
};

__global__ void adamw_step(const double* learning_rate, const std::int64_t* step, const double* gradient_scale,
                           double beta1, double beta2, AdamWStep* out) {
  const double t = static_cast<double>(*step);
  *out = {*learning_rate, *learning_rate / (1 - pow(beta1, t)), 1 / sqrt(1 - pow(beta2, t)),
          gradient_scale ? *gradient_scale : 1};
}

template <class W, class G>
__global__ void adamw_pieces(Table<AdamWEntry<W, G>> table, const AdamWStep* step, double beta1, double beta2,
                             double epsilon) {
  std::int64_t begin;
  const AdamWEntry<W, G> entry = table.entries[table.find(blockIdx.x, &begin)];
  const W keep = static_cast<W>(1 - step->rate * entry.weight_decay), step_size = static_cast<W>(step->step_size);
  const W inverse_root = static_cast<W>(step->inverse_root), scale = static_cast<W>(step->scale);
  const W rest1 = static_cast<W>(1 - beta1), rest2 = static_cast<W>(1 - beta2);
  const W decay2 = static_cast<W>(beta2), small = static_cast<W>(epsilon);
  const std::int64_t end = min(entry.numel, begin + entry.kPiece);
  for_vectors<16 / sizeof(W)>(entry.aligned, begin, end, [&](auto width, std::int64_t i) {
    constexpr int kWidth = width.value;
    const auto gradients = vector_at<kWidth>(entry.gradient, i);
    auto weights = vector_at<kWidth>(entry.weights, i);
    auto first = vector_at<kWidth>(entry.first_moment, i), second = vector_at<kWidth>(entry.second_moment, i);
    Vector<__nv_bfloat16, kWidth> rounded;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const W g = static_cast<W>(load(&gradients.values[j])) * scale;
      W &w = weights.values[j], &m = first.values[j], &v = second.values[j];
      m = m + rest1 * (g - m);
      v = decay2 * v + rest2 * g * g;
      w = w * keep - step_size * (m / (sqrt(v) * inverse_root + small));
      rounded.values[j] = convert<__nv_bfloat16>(w);
    }
    vector_at<kWidth>(entry.first_moment, i) = first;
    vector_at<kWidth>(entry.second_moment, i) = second;
    vector_at<kWidth>(entry.weights, i) = weights;
    if (entry.rounded) vector_at<kWidth>(entry.rounded, i) = rounded;
  });
}

template <class W, class G>
struct SgdEntry {
  static constexpr std::int64_t kPiece = 4096;
  std::int64_t numel;
  W* weights;
  const G* gradient;
  W* momentum;
  __nv_bfloat16* rounded;
  double weight_decay;
};

template <class W, class G>
__global__ void sgd_pieces(Table<SgdEntry<W, G>> table, const double* learning_rate, const double* gradient_scale,
                           double momentum) {
  std::int64_t begin;
  const SgdEntry<W, G> entry = table.entries[table.find(blockIdx.x, &begin)];
  const W rate = static_cast<W>(*learning_rate), decay = static_cast<W>(entry.weight_decay);
  const W scale = gradient_scale ? static_cast<W>(*gradient_scale) : W(1);
  const std::int64_t end = min(entry.numel, begin + entry.kPiece);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    W v = static_cast<W>(load(entry.gradient + i)) * scale + decay * entry.weights[i];
    if (entry.momentum) entry.momentum[i] = v = static_cast<W>(momentum) * entry.momentum[i] + v;
    const W w = entry.weights[i] - rate * v;
    entry.weights[i] = w;
    if (entry.rounded) entry.rounded[i] = convert<__nv_bfloat16>(w);
  }
}

template <class G>
struct NormEntry {
  static constexpr std::int64_t kPiece = 32768;  // long enough that the sum over the block is cheap beside it
  std::int64_t numel;
  const G* values;
  bool aligned;
};

/// partial[block] = sum of squares of a piece.
template <class G>
__global__ void squares(Table<NormEntry<G>> table, double* partial) {
  __shared__ double scratch[32];
  std::int64_t begin;
  const NormEntry<G> entry = table.entries[table.find(blockIdx.x, &begin)];
  double sum = 0;
  for_vectors<16 / sizeof(G)>(entry.aligned, begin, min(entry.numel, begin + entry.kPiece),
                              [&](auto width, std::int64_t i) {
                                const auto values = vector_at<width.value>(entry.values, i);
#pragma unroll
                                for (int j = 0; j < width.value; ++j) {
                                  const double value = load(&values.values[j]);
                                  sum += value * value;
                                }
                              });
  sum = block_reduce(sum, Add{}, 0.0, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void root_of_sum(const double* partial, std::int64_t count, double* norm) {
  __shared__ double scratch[32];
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = block_reduce(sum, Add{}, 0.0, scratch);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}

__global__ void clip_factor_kernel(const double* norm, double max_norm, double* factor) {
  const double ratio = max_norm / (*norm + 1e-6);
  *factor = ratio > 1 ? 1 : ratio;  // a NaN stays visible
}

/// The slots of one gradient dtype; a launch needs them alike.
template <class Slot, class DTypeOf>
std::vector<Slot> of_dtype(const std::vector<Slot>& slots, DType dtype, DTypeOf dtype_of_slot) {
  std::vector<Slot> chosen;
  for (const Slot& slot : slots)
    if (dtype_of_slot(slot) == dtype) chosen.push_back(slot);
  return chosen;
}

constexpr DType kFloating[] = {DType::f32, DType::f64, DType::bf16};

const double* optional(const Tensor& scalar) { return scalar.defined() ? scalar.data<double>() : nullptr; }

}  // namespace

void adamw(const std::vector<ops::AdamWSlot>& slots, const Tensor& learning_rate, const Tensor& step,
           const Tensor& gradient_scale, double beta1, double beta2, double epsilon) {
  const cudaStream_t stream = stream_of(learning_rate);
  const Tensor step_numbers = Tensor::empty({sizeof(AdamWStep) / sizeof(double)}, DType::f64, learning_rate.device());
  auto* const numbers = reinterpret_cast<AdamWStep*>(step_numbers.data<double>());
  adamw_step<<<1, 1, 0, stream>>>(learning_rate.data<double>(), step.data<std::int64_t>(), optional(gradient_scale),
                                  beta1, beta2, numbers);
  for (const DType dtype : kFloating)
    dispatch_floating(dtype, "adamw", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using W = accumulate_t<T>;
      using G = device_t<T>;
      const auto chosen = of_dtype(slots, dtype, [](const ops::AdamWSlot& slot) { return slot.gradient.dtype(); });
      const auto to_entry = [](const ops::AdamWSlot& slot) {
        const bool master = slot.master.defined();
        return AdamWEntry<W, G>{
            slot.parameter.numel(),
            pointer<W>(master ? slot.master : slot.parameter),
            pointer<T>(slot.gradient),
            pointer<W>(slot.first_moment),
            pointer<W>(slot.second_moment),
            master ? pointer<bfloat16>(slot.parameter) : nullptr,
            slot.weight_decay,
            all_aligned({slot.parameter, slot.master, slot.gradient, slot.first_moment, slot.second_moment})};
      };
      for_tables<AdamWEntry<W, G>>(chosen, to_entry, [&](const auto& table, unsigned pieces) {
        adamw_pieces<<<pieces, kThreads, 0, stream>>>(table, numbers, beta1, beta2, epsilon);
        check_launch("adamw");
      });
    });
}

void sgd(const std::vector<ops::SgdSlot>& slots, const Tensor& learning_rate, const Tensor& gradient_scale,
         double momentum) {
  const cudaStream_t stream = stream_of(learning_rate);
  for (const DType dtype : kFloating)
    dispatch_floating(dtype, "sgd", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using W = accumulate_t<T>;
      using G = device_t<T>;
      const auto chosen = of_dtype(slots, dtype, [](const ops::SgdSlot& slot) { return slot.gradient.dtype(); });
      const auto to_entry = [](const ops::SgdSlot& slot) {
        const bool master = slot.master.defined();
        return SgdEntry<W, G>{
            slot.parameter.numel(),    pointer<W>(master ? slot.master : slot.parameter),    pointer<T>(slot.gradient),
            pointer<W>(slot.momentum), master ? pointer<bfloat16>(slot.parameter) : nullptr, slot.weight_decay};
      };
      for_tables<SgdEntry<W, G>>(chosen, to_entry, [&](const auto& table, unsigned pieces) {
        sgd_pieces<<<pieces, kThreads, 0, stream>>>(table, learning_rate.data<double>(), optional(gradient_scale),
                                                    momentum);
        check_launch("sgd");
      });
    });
}

void global_norm(const std::vector<Tensor>& tensors, const Tensor& norm) {
  const cudaStream_t stream = stream_of(norm);
  std::int64_t pieces_in_all = 0;
  for (const Tensor& x : tensors) pieces_in_all += blocks_for(x.numel(), NormEntry<float>::kPiece);
  const Tensor partial = Tensor::empty({std::max<std::int64_t>(pieces_in_all, 1)}, DType::f64, norm.device());
  std::int64_t done = 0;
  for (const DType dtype : kFloating)
    dispatch_floating(dtype, "global_norm", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using G = device_t<T>;
      const auto chosen = of_dtype(tensors, dtype, [](const Tensor& x) { return x.dtype(); });
      const auto to_entry = [](const Tensor& x) { return NormEntry<G>{x.numel(), pointer<T>(x), all_aligned({x})}; };
      for_tables<NormEntry<G>>(chosen, to_entry, [&](const auto& table, unsigned pieces) {
        squares<<<pieces, kThreads, 0, stream>>>(table, partial.data<double>() + done);
        check_launch("global_norm");
        done += pieces;
      });
    });
  root_of_sum<<<1, 1024, 0, stream>>>(partial.data<double>(), done, norm.data<double>());
  check_launch("global_norm");
}

void clip_factor(const Tensor& norm, double max_norm, const Tensor& factor) {
  clip_factor_kernel<<<1, 1, 0, stream_of(norm)>>>(norm.data<double>(), max_norm, factor.data<double>());
  check_launch("clip_factor");
}

}  // namespace switchyard::cuda
