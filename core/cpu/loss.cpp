#include "core/kernels/loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/cpu/vector_math.h"
#include "core/parallel.h"

namespace switchyard::cpu {
namespace {

constexpr std::int64_t kGrain = 4096;  // elements worth a thread

void check_targets(const std::int64_t* targets, std::int64_t count, std::int64_t ignore_index, std::int64_t classes) {
  for (std::int64_t i = 0; i < count; ++i)
    check(targets[i] == ignore_index || (targets[i] >= 0 && targets[i] < classes), "cross_entropy: target ", targets[i],
          " at row ", i, " is outside 0..", classes - 1, " and is not ignore_index ", ignore_index);
}

template <class Compute>
struct RowSums {
  Compute largest, exponentials;  // exponentials = sum of e^(x - largest)
};

template <class T>
RowSums<accumulate_t<T>> row_sums(const T* x, std::int64_t size) {
  using Compute = accumulate_t<T>;
  Compute largest = -std::numeric_limits<Compute>::infinity();
#pragma omp simd reduction(max : largest)
  for (std::int64_t j = 0; j < size; ++j) largest = std::max(largest, static_cast<Compute>(x[j]));
  Compute exponentials = 0;
#pragma omp simd reduction(+ : exponentials)
  for (std::int64_t j = 0; j < size; ++j) exponentials += fast_exp(static_cast<Compute>(x[j]) - largest);
  return {largest, exponentials};
}

// dx = (softmax(x) - onehot(target)) scale; dx may be x.
template <class T, class G>
void row_gradient(const T* x, std::int64_t size, RowSums<accumulate_t<T>> sums, std::int64_t target,
                  accumulate_t<T> scale, G* dx) {
  using Compute = accumulate_t<T>;
  const Compute factor = scale / sums.exponentials;
  const Compute at_target =
      fast_exp(static_cast<Compute>(x[target]) - sums.largest) * factor - scale;  // before x is overwritten
  for (std::int64_t j = 0; j < size; ++j)
    dx[j] = static_cast<G>(fast_exp(static_cast<Compute>(x[j]) - sums.largest) * factor);
  dx[target] = static_cast<G>(at_target);
}

template <class T, class G>
void all_rows(const Tensor& logits, const std::int64_t* target, std::int64_t ignore_index, const Tensor& losses,
              const Tensor& dlogits, const Tensor& scale) {
  using Compute = accumulate_t<T>;
  const std::int64_t classes = logits.size(1);
  Compute* loss = losses.data<Compute>();
  G* gradient = dlogits.defined() ? dlogits.data<G>() : nullptr;
  const Compute factor = gradient ? scale.data<Compute>()[0] : Compute(0);
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / (classes + 1));
  parallel_for(0, logits.size(0), grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* x = logits.data<T>() + i * classes;
      G* dx = gradient ? gradient + i * classes : nullptr;
      if (target[i] == ignore_index) {
        loss[i] = 0;
        if (dx) std::fill_n(dx, classes, G(0.0f));
        continue;
      }
      const RowSums<Compute> sums = row_sums(x, classes);
      loss[i] = std::log(sums.exponentials) + sums.largest - static_cast<Compute>(x[target[i]]);
      if (dx) row_gradient(x, classes, sums, target[i], factor, dx);
    }
  });
}

}  // namespace

void cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t ignore_index, const Tensor& losses,
                   const Tensor& dlogits, const Tensor& scale) {
  const std::int64_t* target = targets.data<std::int64_t>();
  check_targets(target, logits.size(0), ignore_index, logits.size(1));
  if (dlogits.defined() && logits.dtype() == DType::f32 && dlogits.dtype() == DType::bf16)
    return all_rows<float, bfloat16>(logits, target, ignore_index, losses, dlogits, scale);
  dispatch_floating(logits.dtype(), "cross_entropy",
                    [&]<class T>(TypeTag<T>) { all_rows<T, T>(logits, target, ignore_index, losses, dlogits, scale); });
}

void inverse_target_count(const Tensor& targets, std::int64_t ignore_index, const Tensor& inverse) {
  const std::int64_t* target = targets.data<std::int64_t>();
  const std::int64_t count = targets.numel() - std::count(target, target + targets.numel(), ignore_index);
  inverse.fill(count > 0 ? 1 / static_cast<double>(count) : 0);
}

}  // namespace switchyard::cpu
