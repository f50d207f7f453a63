// Expert products as dense products over all experts, for layers with few experts per slot (SwitchHead).
//
// With E experts per slot, k of them chosen, this computes E / k times as many products as are wanted. But rows lie in
// order, cuBLAS multiplies them at the full speed of the GPU, and no pass over pairs is left. All weights form one
// matrix W [D, H E d] between a side with a row per token, t [N, D], and a side with a row per slot, s [N H, d]:
//   slots from tokens    s[n, h] = sum over the choices j of gate_j (t W)[n, h, e_j]
//   tokens from slots    t = spread W^T,   spread[n, h, e] = s[n, h] times the gate of e, 0 where e is not chosen
// A SwitchHead value projection goes from tokens to slots and its gradient back; an output projection the other way
// round. The weight's gradient is t^T spread for both. Gates' gradients need t W, which is computed again.
//
// Bytes moved besides those of the products, per call: N H (E + 1) d to spread, at most N H (k + 1) d to choose.

#include "core/kernels/copy.h"
#include "core/kernels/matmul.h"
#include "core/ops/norm.h"
#include "cuda/access.h"
#include "cuda/expert_matmul_dense.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

using ops::Rows;

constexpr std::int64_t kMostWork = 3;           // E / k up to which the dense product is the faster one
constexpr std::int64_t kFewestTokens = 64;      // below, launches decide
constexpr std::int64_t kWorkspace = 256 << 20;  // bytes of t W or spread that exist at once

/// The choices of rows of one token after the other.
template <class D>
struct Choices {
  const std::int32_t* chosen;  // [rows, count], an expert of the row's slot each
  const D* gates;              // [rows, count], or null for 1
  int count, experts;

  __device__ compute_t<D> gate(std::int64_t choice) const { return gates ? load(gates + choice) : compute_t<D>(1); }
};

/// out[row, e] = gate of e times x[row], 0 where e is not chosen. A thread per kWidth columns of a row.
template <int kWidth, class D>
__global__ void spread_rows(Choices<D> choices, const D* x, std::int64_t rows, int width, D* out) {
  using A = compute_t<D>;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int vectors = width / kWidth;
  const std::int64_t row = index / vectors;
  if (row >= rows) return;
  const auto values = reinterpret_cast<const Vector<D, kWidth>*>(x)[index];
  auto* to = reinterpret_cast<Vector<D, kWidth>*>(out) + row * choices.experts * vectors + index % vectors;
  for (int e = 0; e < choices.experts; ++e, to += vectors) {
    A gate = 0;
    bool taken = false;
    for (std::int64_t choice = row * choices.count; choice < (row + 1) * choices.count; ++choice) {
      if (choices.chosen[choice] != e) continue;
      gate += choices.gate(choice);
      taken = true;
    }
    Vector<D, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) result.values[i] = convert<D>(taken ? gate * load(&values.values[i]) : A(0));
    *to = result;
  }
}

/// One row of products [rows, E, width] as the lanes that share it read it: kStep choices at a time, so that several
/// loads are under way.
template <int kWidth, class D>
struct ChosenProducts {
  using A = compute_t<D>;
  using Access = Vector<D, kWidth>;
  static constexpr int kStep = 2;

  Choices<D> choices;
  const D* products;
  std::int64_t row, rows;
  int width, lane, lanes;

  /// Where the product of choice j begins, null where there is no such choice, and its gate.
  __device__ const D* choice(int j, A* gate) const {
    if (row >= rows || j >= choices.count) return nullptr;
    const std::int32_t e = choices.chosen[row * choices.count + j];
    if (e < 0 || e >= choices.experts) return nullptr;
    if (gate) *gate = choices.gate(row * choices.count + j);
    return products + (row * choices.experts + e) * width;
  }
  __device__ static Access read(const D* from, int column) {
    return from ? *reinterpret_cast<const Access*>(from + column) : Access{};
  }

  /// sums[row] = sum over choices of gate times product.
  __device__ void weighted_sum(D* sums) const {
    if (row >= rows) return;
    for (int column = lane * kWidth; column < width; column += lanes * kWidth) {
      A sum[kWidth] = {};
      for (int j = 0; j < choices.count; j += kStep) {
        A gates[kStep] = {};
        Access values[kStep];
#pragma unroll
        for (int s = 0; s < kStep; ++s) values[s] = read(choice(j + s, &gates[s]), column);
#pragma unroll
        for (int s = 0; s < kStep; ++s)
#pragma unroll
          for (int i = 0; i < kWidth; ++i) sum[i] += gates[s] * load(&values[s].values[i]);
      }
      Access result;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) result.values[i] = convert<D>(sum[i]);
      *reinterpret_cast<Access*>(sums + row * width + column) = result;
    }
  }

  /// dots[row, j] = other[row] . product.
  __device__ void dots_with(const D* other, D* dots) const {
    for (int j = 0; j < choices.count; j += kStep) {
      const D* from[kStep];
      A dot[kStep] = {};
#pragma unroll
      for (int s = 0; s < kStep; ++s) from[s] = choice(j + s, nullptr);
      for (int column = lane * kWidth; column < width && row < rows; column += lanes * kWidth) {
        const Access own = read(other + row * width, column);
#pragma unroll
        for (int s = 0; s < kStep; ++s) {
          const Access values = read(from[s], column);
#pragma unroll
          for (int i = 0; i < kWidth; ++i) dot[s] += load(&own.values[i]) * load(&values.values[i]);
        }
      }
#pragma unroll
      for (int s = 0; s < kStep; ++s) {
        for (int distance = lanes / 2; distance > 0; distance /= 2)
          dot[s] += __shfl_xor_sync(0xffffffffu, dot[s], distance);
        if (lane == 0 && row < rows && j + s < choices.count) dots[row * choices.count + j + s] = convert<D>(dot[s]);
      }
    }
  }
};

/// Picks what the choices want out of products [rows, E, width]; `lanes` is a power of two. sums or dots may be null.
template <int kWidth, class D>
__global__ void merge_rows(Choices<D> choices, const D* products, const D* other, std::int64_t rows, int width,
                           int lanes, D* sums, D* dots) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  const ChosenProducts<kWidth, D> chosen{choices, products, row, rows, width, static_cast<int>(threadIdx.x) % lanes,
                                         lanes};
  if (sums) chosen.weighted_sum(sums);
  if (dots) chosen.dots_with(other, dots);
}

template <class T>
Choices<device_t<T>> choices_of(const ops::RoutingPlan& plan, const Tensor& gates, std::int64_t first_row) {
  const std::int64_t at = first_row * plan.choices;
  return {plan.choice_to_expert.data<std::int32_t>() + at, gates.defined() ? pointer<T>(gates) + at : nullptr,
          static_cast<int>(plan.choices), static_cast<int>(plan.experts / plan.slots)};
}

/// Consecutive tokens that are worked on at once.
struct Part {
  const ops::RoutingPlan& plan;
  std::int64_t first, tokens;

  Tensor token_rows(const Tensor& t) const { return t.slice(0, first, first + tokens); }
  Tensor slot_rows(const Tensor& s) const {
    return s.defined() ? s.slice(0, first * plan.slots, (first + tokens) * plan.slots) : s;
  }
  /// Room for a value of `width` elements per token, slot and expert.
  Tensor workspace(const Tensor& like, std::int64_t width) const {
    return Tensor::empty({tokens, plan.experts * width}, like.dtype(), like.device());
  }
};

/// How many tokens are worked on at once, so that the workspace is bounded. `s` is the side with a row per slot.
std::int64_t tokens_per_part(const ops::RoutingPlan& plan, const Tensor& s) {
  const auto bytes = plan.experts * s.size(1) * static_cast<std::int64_t>(size_of(s.dtype()));
  const std::int64_t most = std::max<std::int64_t>(kWorkspace / std::max<std::int64_t>(bytes, 1), 1);
  const std::int64_t parts = (plan.tokens + most - 1) / most;
  return (plan.tokens + parts - 1) / parts;
}

template <class F>
void for_parts(const ops::RoutingPlan& plan, const Tensor& s, F f) {
  const std::int64_t tokens = tokens_per_part(plan, s);
  for (std::int64_t first = 0; first < plan.tokens; first += tokens)
    f(Part{plan, first, std::min(tokens, plan.tokens - first)});
}

void multiply(const Tensor& a, const Tensor& b, const Tensor& out, double beta = 0) {
  matmul(a.unsqueeze(0), b.unsqueeze(0), out.unsqueeze(0), 1, beta);
}

/// spread of one part: [tokens, H E d].
Tensor spread(const Part& part, const Tensor& s, const Tensor& gates) {
  const std::int64_t width = s.size(1), rows = part.tokens * part.plan.slots;
  const Tensor from = part.slot_rows(s), out = part.workspace(s, width);
  if (out.numel() == 0) return out;
  dispatch_floating(s.dtype(), "expert_matmul", [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access<T, 16, 8>(width, {&from}, [&](auto access) {
      spread_rows<access.value><<<blocks_for(rows * (width / access.value), kThreads), kThreads, 0, stream_of(s)>>>(
          choices_of<T>(part.plan, gates, part.first * part.plan.slots), pointer<T>(from), rows,
          static_cast<int>(width), pointer<T>(out));
    });
  });
  check_launch("expert_matmul: spread");
  return out;
}

/// sums and dots, each of which may be undefined, of the whole tensors' rows that belong to the part.
void merge(const Part& part, const Tensor& products, const Tensor& gates, const Tensor& other, const Tensor& sums,
           const Tensor& dots) {
  const std::int64_t width = products.size(1) / part.plan.experts, rows = part.tokens * part.plan.slots;
  const std::int64_t first_row = part.first * part.plan.slots;
  dispatch_floating(products.dtype(), "expert_matmul", [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access<T, 16, 8>(width, {&other}, [&](auto access) {
      int lanes = 1;
      while (lanes < 32 && lanes * access.value < width) lanes *= 2;
      merge_rows<access.value><<<blocks_for(rows * lanes, kThreads), kThreads, 0, stream_of(products)>>>(
          choices_of<T>(part.plan, gates, first_row), pointer<T>(products), pointer<T>(part.slot_rows(other)), rows,
          static_cast<int>(width), lanes, pointer<T>(part.slot_rows(sums)),
          dots.defined() ? pointer<T>(dots) + first_row * part.plan.choices : nullptr);
    });
  });
  check_launch("expert_matmul: merge");
}

bool from_tokens(const ops::ExpertMatmulOptions& options) { return options.input == Rows::token; }

/// W [D, H E d] of weights [H E, D, d], or [H E, d, D] where the product goes from slots to tokens.
Tensor all_weights(const Tensor& weight, const ops::ExpertMatmulOptions& options) {
  if (from_tokens(options)) return weight.permute({1, 0, 2}).reshape({weight.size(1), -1});
  return weight.reshape({-1, weight.size(2)}).transpose(0, 1);
}

/// s = the chosen of t W, weighted; with `other`, the gates' gradients as well. s and dots may be undefined.
void slots_from_tokens(const Tensor& t, const Tensor& weights, const Tensor& gates, const ops::RoutingPlan& plan,
                       const Tensor& other, const Tensor& s, const Tensor& dots) {
  for_parts(plan, s.defined() ? s : other, [&](const Part& part) {
    const Tensor products = part.workspace(t, weights.size(1) / plan.experts);
    multiply(part.token_rows(t), weights, products);
    merge(part, products, gates, other, s, dots);
  });
}

/// t = spread W^T.
void tokens_from_slots(const Tensor& s, const Tensor& weights, const Tensor& gates, const ops::RoutingPlan& plan,
                       const Tensor& t) {
  for_parts(plan, s,
            [&](const Part& part) { multiply(spread(part, s, gates), weights.transpose(0, 1), part.token_rows(t)); });
}

}  // namespace

bool dense_product_pays(const Tensor& bias, const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options) {
  const bool between_tokens_and_slots = (options.input == Rows::token && options.output == Rows::row) ||
                                        (options.input == Rows::row && options.output == Rows::token);
  return between_tokens_and_slots && !bias.defined() && plan.choice_to_expert.defined() &&
         plan.tokens >= kFewestTokens && plan.experts <= kMostWork * plan.choices * plan.slots;
}

void dense_expert_matmul(const Tensor& x, const Tensor& weight, const Tensor& gates, const ops::RoutingPlan& plan,
                         const ops::ExpertMatmulOptions& options, const Tensor& y) {
  const Tensor weights = all_weights(weight, options);
  if (from_tokens(options)) slots_from_tokens(x, weights, gates, plan, {}, y, {});
  else tokens_from_slots(x, weights, gates, plan, y);
}

void dense_expert_matmul_input_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& gates,
                                        const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options,
                                        const Tensor& dx, const Tensor& dgates) {
  const Tensor weights = all_weights(weight, options);
  if (!from_tokens(options)) return slots_from_tokens(dy, weights, gates, plan, x, dx, dgates);
  if (dx.defined()) tokens_from_slots(dy, weights, gates, plan, dx);
  if (dgates.defined()) slots_from_tokens(x, weights, gates, plan, dy, {}, dgates);
}

// Several parts are summed in the compute dtype.
void dense_expert_matmul_weight_backward(const Tensor& dy, const Tensor& x, const Tensor& gates,
                                         const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options,
                                         const Tensor& dweight) {
  const bool up = from_tokens(options);
  const Tensor &t = up ? x : dy, &s = up ? dy : x;
  const std::int64_t all = plan.experts * s.size(1);
  const bool one_part = tokens_per_part(plan, s) >= plan.tokens;
  const DType dtype = one_part ? x.dtype() : ops::compute_dtype(x.dtype());
  const Tensor sum = one_part && !up
                         ? dweight.view({all, t.size(1)})
                         : Tensor::empty(up ? Shape{t.size(1), all} : Shape{all, t.size(1)}, dtype, x.device());
  for_parts(plan, s, [&](const Part& part) {
    const Tensor tokens = part.token_rows(t), slots = spread(part, s, gates);
    const double beta = part.first == 0 ? 0 : 1;
    if (up) multiply(tokens.transpose(0, 1), slots, sum, beta);
    else multiply(slots.transpose(0, 1), tokens, sum, beta);
  });
  if (up) copy(sum.view({t.size(1), plan.experts, s.size(1)}).permute({1, 0, 2}), dweight);
  else if (!one_part) copy(sum.view(dweight.shape()), dweight);
}

}  // namespace switchyard::cuda
