#include "core/kernels/optim.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"

namespace switchyard::cpu {
namespace {

constexpr std::int64_t kPiece = 16384;  // elements per piece of work; fixed, so that sums do not depend on threads

// A stretch of one tensor. Many small parameters and few large ones alike give a flat list to share out.
struct Piece {
  std::size_t slot;
  std::int64_t begin, end;
};

template <class Slots, class NumelOf>
std::vector<Piece> cut(const Slots& slots, NumelOf numel_of) {
  std::vector<Piece> pieces;
  for (std::size_t slot = 0; slot < slots.size(); ++slot)
    for (std::int64_t begin = 0, numel = numel_of(slots[slot]); begin < numel; begin += kPiece)
      pieces.push_back({slot, begin, std::min(numel, begin + kPiece)});
  return pieces;
}

template <class F>
void for_pieces(const std::vector<Piece>& pieces, F&& f) {
  parallel_for(0, static_cast<std::int64_t>(pieces.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) f(pieces[static_cast<std::size_t>(i)], static_cast<std::size_t>(i));
  });
}

double value_of(const Tensor& scalar, double otherwise) {
  return scalar.defined() ? scalar.data<double>()[0] : otherwise;
}

// Calls f(weights, gradient) with typed pointers to the full-precision weights (the master copy of a bf16 parameter)
// and the gradient of a piece, then rounds a bf16 parameter's master copy back into it.
template <class Slot, class F>
void update_piece(const char* op, const Slot& slot, const Piece& piece, F&& f) {
  const Tensor& weights = slot.master.defined() ? slot.master : slot.parameter;
  dispatch_floating(slot.gradient.dtype(), op, [&](auto tag) {
    using G = typename decltype(tag)::type;
    using W = accumulate_t<G>;
    f(weights.template data<W>(), slot.gradient.template data<G>());
  });
  if (!slot.master.defined()) return;
  const float* from = slot.master.template data<float>();
  bfloat16* to = slot.parameter.template data<bfloat16>();
  for (std::int64_t i = piece.begin; i < piece.end; ++i) to[i] = bfloat16(from[i]);
}

struct AdamWFactors {
  double keep;       // 1 - learning rate * weight decay
  double step_size;  // learning rate / (1 - beta1^t)
  double scale;      // of the gradient
  double beta1, beta2;
  double inverse_root;  // 1 / sqrt(1 - beta2^t)
  double epsilon;
};

template <class W, class G>
void adamw_loop(const AdamWFactors& factors, std::int64_t count, const G* __restrict gradient, W* __restrict weights,
                W* __restrict first_moment, W* __restrict second_moment) {
  const W keep = static_cast<W>(factors.keep), step_size = static_cast<W>(factors.step_size);
  const W scale = static_cast<W>(factors.scale), inverse_root = static_cast<W>(factors.inverse_root);
  const W beta2 = static_cast<W>(factors.beta2), epsilon = static_cast<W>(factors.epsilon);
  const W rest1 = static_cast<W>(1 - factors.beta1), rest2 = static_cast<W>(1 - factors.beta2);
  for (std::int64_t i = 0; i < count; ++i) {
    const W g = static_cast<W>(gradient[i]) * scale;
    const W m = first_moment[i] + rest1 * (g - first_moment[i]);
    const W v = beta2 * second_moment[i] + rest2 * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    weights[i] = weights[i] * keep - step_size * (m / (std::sqrt(v) * inverse_root + epsilon));
  }
}

template <class W, class G>
void sgd_loop(W learning_rate, W scale, W decay, W momentum, std::int64_t count, const G* __restrict gradient,
              W* __restrict weights, W* __restrict velocity) {
  for (std::int64_t i = 0; i < count; ++i) {
    W v = static_cast<W>(gradient[i]) * scale + decay * weights[i];
    if (velocity) v = velocity[i] = momentum * velocity[i] + v;
    weights[i] -= learning_rate * v;
  }
}

// Independent partial sums, so that the loop becomes SIMD without leave to reorder additions.
template <class T>
double sum_of_squares(const T* x, std::int64_t count) {
  constexpr std::int64_t kLanes = 16;
  double sums[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = static_cast<accumulate_t<T>>(x[i + lane]);
      sums[lane] += value * value;
    }
  for (; i < count; ++i) {
    const double value = static_cast<accumulate_t<T>>(x[i]);
    sums[0] += value * value;
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace

void adamw(const std::vector<ops::AdamWSlot>& slots, const Tensor& learning_rate, const Tensor& step,
           const Tensor& gradient_scale, double beta1, double beta2, double epsilon) {
  const double rate = learning_rate.data<double>()[0], t = static_cast<double>(step.data<std::int64_t>()[0]);
  const double scale = value_of(gradient_scale, 1);
  const double step_size = rate / (1 - std::pow(beta1, t)), inverse_root = 1 / std::sqrt(1 - std::pow(beta2, t));
  const auto pieces = cut(slots, [](const ops::AdamWSlot& slot) { return slot.parameter.numel(); });
  for_pieces(pieces, [&](const Piece& piece, std::size_t) {
    const ops::AdamWSlot& slot = slots[piece.slot];
    const AdamWFactors factors{1 - rate * slot.weight_decay, step_size, scale, beta1, beta2, inverse_root, epsilon};
    update_piece("adamw", slot, piece, [&]<class W, class G>(W* weights, const G* gradient) {
      adamw_loop(factors, piece.end - piece.begin, gradient + piece.begin, weights + piece.begin,
                 slot.first_moment.data<W>() + piece.begin, slot.second_moment.data<W>() + piece.begin);
    });
  });
}

void sgd(const std::vector<ops::SgdSlot>& slots, const Tensor& learning_rate, const Tensor& gradient_scale,
         double momentum) {
  const double rate = learning_rate.data<double>()[0], scale = value_of(gradient_scale, 1);
  const auto pieces = cut(slots, [](const ops::SgdSlot& slot) { return slot.parameter.numel(); });
  for_pieces(pieces, [&](const Piece& piece, std::size_t) {
    const ops::SgdSlot& slot = slots[piece.slot];
    update_piece("sgd", slot, piece, [&]<class W, class G>(W* weights, const G* gradient) {
      W* velocity = slot.momentum.defined() ? slot.momentum.data<W>() + piece.begin : nullptr;
      sgd_loop(static_cast<W>(rate), static_cast<W>(scale), static_cast<W>(slot.weight_decay), static_cast<W>(momentum),
               piece.end - piece.begin, gradient + piece.begin, weights + piece.begin, velocity);
    });
  });
}

void global_norm(const std::vector<Tensor>& tensors, const Tensor& norm) {
  const auto pieces = cut(tensors, [](const Tensor& x) { return x.numel(); });
  std::vector<double> sums(pieces.size());
  for_pieces(pieces, [&](const Piece& piece, std::size_t i) {
    const Tensor& x = tensors[piece.slot];
    dispatch_floating(x.dtype(), "global_norm", [&](auto tag) {
      sums[i] = sum_of_squares(x.data<typename decltype(tag)::type>() + piece.begin, piece.end - piece.begin);
    });
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  norm.data<double>()[0] = std::sqrt(total);
}

void clip_factor(const Tensor& norm, double max_norm, const Tensor& factor) {
  const double ratio = max_norm / (norm.data<double>()[0] + 1e-6);
  factor.data<double>()[0] = ratio > 1 ? 1 : ratio;  // a NaN stays visible
}

}  // namespace switchyard::cpu
