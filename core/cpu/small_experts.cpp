// Products of experts with 4 to 32 neurons. The general way gathers a copy of a token's row for every pair, and writes
// a row of products for every pair before summing: with 4 neurons that moves more bytes than there are multiply-adds.
// Here the tokens are taken in chunks whose rows stay in the second-level cache, and each expert, in the first-level
// cache meanwhile, works on the rows where they lie.

#include "core/cpu/small_experts.h"

#include <type_traits>
#include <vector>

#include "core/cpu/expert_plan.h"
#include "core/kernels/elementwise.h"
#include "core/parallel.h"

namespace switchyard::cpu {
namespace {

using experts::Operand;
using experts::Plan;
using ops::Rows;

constexpr std::int64_t kMostNeurons = 32;
constexpr std::int64_t kLeastRatio = 8;  // of the wide side to the neurons
constexpr std::int64_t kLeastTokens = 16;
constexpr std::int64_t kChunkTokens = 256;
constexpr std::int64_t kColumns = 256;  // of a result that a piece of work sums up

bool is_narrow(std::int64_t neurons, std::int64_t wide) {
  return neurons <= kMostNeurons && wide >= kLeastRatio * neurons;
}

/// Neurons worked on at once: as many sums run side by side as hide the latency of an addition.
constexpr std::int64_t kGroup = 4;

/// result[s] = x . columns[s] for one neuron or a group, each a row of `inner` values. (The sums have names because GCC
/// 12 does not vectorise a reduction into an array.)
template <std::int64_t G, class T>
void dots(const T* x, const T* columns, std::int64_t inner, T* result) {
  static_assert(G == 1 || G == 4);
  if constexpr (G == 1) {
    *result = experts::dot(x, columns, inner);
  } else {
    const T *a = columns, *b = a + inner, *c = b + inner, *d = c + inner;
    T sum_a = 0, sum_b = 0, sum_c = 0, sum_d = 0;
#pragma omp simd reduction(+ : sum_a, sum_b, sum_c, sum_d)
    for (std::int64_t i = 0; i < inner; ++i) {
      sum_a += x[i] * a[i];
      sum_b += x[i] * b[i];
      sum_c += x[i] * c[i];
      sum_d += x[i] * d[i];
    }
    result[0] = sum_a;
    result[1] = sum_b;
    result[2] = sum_c;
    result[3] = sum_d;
  }
}

/// sum[m] += factors . rows[.][m] for G neurons.
template <std::int64_t G, class T>
void add_rows(const T* factors, const T* rows, std::int64_t rows_apart, std::int64_t count, T* sum) {
#pragma omp simd
  for (std::int64_t m = 0; m < count; ++m) {
    T total = sum[m];
    for (std::int64_t s = 0; s < G; ++s) total += factors[s] * rows[s * rows_apart + m];
    sum[m] = total;
  }
}

/// Calls f(the size of the group, its first neuron) for all neurons, in groups of kGroup, then one by one.
template <class F>
void in_groups(std::int64_t neurons, F f) {
  std::int64_t s = 0;
  for (; s + kGroup <= neurons; s += kGroup) f(std::integral_constant<std::int64_t, kGroup>{}, s);
  for (; s < neurons; ++s) f(std::integral_constant<std::int64_t, 1>{}, s);
}

/// y[pair] = activation(x[token] weight[e] + bias[e]); weight [E, K, S] with small S is transposed, expert by expert,
/// so that each neuron is a dot product.
template <class T>
void tokens_to_pairs(const Plan& plan, const Operand<T>& x, const Tensor& weight, const T* bias,
                     ops::Activation activation, const Tensor& y) {
  const std::int64_t inner = x.width, neurons = y.size(1), chunks = (plan.tokens + kChunkTokens - 1) / kChunkTokens;
  const std::int64_t rows_apart = weight.stride(1), columns_apart = weight.stride(2);
  T* to = y.data<T>();
  parallel_for(0, chunks * plan.experts, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> columns(static_cast<std::size_t>(neurons * inner));
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t expert = i % plan.experts, token = i / plan.experts * kChunkTokens;
      const std::int64_t first = plan.first_pair(expert, token), last = plan.first_pair(expert, token + kChunkTokens);
      if (first == last) continue;
      const T* from = weight.data<T>() + expert * weight.stride(0);
      for (std::int64_t k = 0; k < inner; ++k)
        for (std::int64_t s = 0; s < neurons; ++s)
          columns[static_cast<std::size_t>(s * inner + k)] = from[k * rows_apart + s * columns_apart];
      for (std::int64_t pair = first; pair < last; ++pair) {
        const T* row = x.row(plan, pair);
        T* own = to + pair * neurons;
        in_groups(neurons, [&]<std::int64_t G>(std::integral_constant<std::int64_t, G>, std::int64_t s) {
          dots<G>(row, columns.data() + s * inner, inner, own + s);
        });
        for (std::int64_t s = 0; bias && s < neurons; ++s) own[s] += bias[expert * neurons + s];
      }
      const Tensor products = y.slice(0, first, last);
      if (activation != ops::Activation::identity) unary(activation, products, products);
    }
  });
  std::fill(to + plan.pairs * neurons, to + y.numel(), T(0));  // as in the general way
}

/// y[token] += gate x[pair] weight[e] in the order of the experts, which is the order of the choices of a mask; weight
/// [E, S, M] with small S. Each piece of work owns the columns that it sums, of one chunk of tokens.
template <class T>
void pairs_to_tokens(const Plan& plan, const Operand<T>& x, const Tensor& weight, const T* gates, const Tensor& y) {
  const std::int64_t width = y.size(1), neurons = x.width, blocks = (width + kColumns - 1) / kColumns;
  const std::int64_t chunks = (plan.tokens + kChunkTokens - 1) / kChunkTokens, rows_apart = weight.stride(1);
  T* to = y.data<T>();
  std::fill(to, to + y.numel(), T(0));
  parallel_for(0, chunks * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t token = i / blocks * kChunkTokens, column = i % blocks * kColumns;
      const std::int64_t count = std::min(kColumns, width - column);
      for (std::int64_t expert = 0; expert < plan.experts; ++expert) {
        const T* rows = weight.data<T>() + expert * weight.stride(0) + column;
        const std::int64_t last = plan.first_pair(expert, token + kChunkTokens);
        for (std::int64_t pair = plan.first_pair(expert, token); pair < last; ++pair) {
          const std::int64_t choice = plan.pair_to_choice[pair];
          T* sum = to + choice / plan.choices * width + column;
          T factors[kMostNeurons];
          for (std::int64_t s = 0; s < neurons; ++s) factors[s] = x.row(plan, pair)[s] * (gates ? gates[choice] : T(1));
          in_groups(neurons, [&]<std::int64_t G>(std::integral_constant<std::int64_t, G>, std::int64_t s) {
            add_rows<G>(factors + s, rows + s * rows_apart, rows_apart, count, sum);
          });
        }
      }
    }
  });
}

}  // namespace

bool small_expert_matmul(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                         const ops::RoutingPlan& routing, const ops::ExpertMatmulOptions& options, const Tensor& y) {
  // Of a mask alone is the order of the experts the order of the choices, in which sums are promised.
  const bool of_mask = routing.slots == 1 && !routing.choice_to_expert.defined();
  if (!of_mask || routing.tokens < kLeastTokens || x.dtype() == DType::bf16) return false;
  const bool up = options.input != Rows::pair && options.output == Rows::pair && !gates.defined() &&
                  is_narrow(weight.size(2), weight.size(1));
  const bool down = options.input == Rows::pair && options.output != Rows::pair && !bias.defined() &&
                    weight.stride(2) == 1 && is_narrow(weight.size(1), weight.size(2));
  if (!up && !down) return false;
  const Plan plan(routing);
  const auto run = [&]<class T>(TypeTag<T>) {
    const Operand<T> source(x, options.input);
    if (up) tokens_to_pairs(plan, source, weight, bias.defined() ? bias.data<T>() : nullptr, options.activation, y);
    else pairs_to_tokens(plan, source, weight, gates.defined() ? gates.data<T>() : nullptr, y);
  };
  if (x.dtype() == DType::f64) run(TypeTag<double>{});
  else run(TypeTag<float>{});
  return true;
}

}  // namespace switchyard::cpu
