#pragma once

#include "cuda/attention_band.cuh"

namespace switchyard::cuda {

/// Columns that pass by at once in the backward kernels. A band against columns has 16 + columns rows for 16 that are
/// wanted, so kernels that need one take fewer.
constexpr int kBackwardStep = 32, kColumnBandStep = 16;

/// Shared memory of a backward kernel: two tiles of rows, two stages of two tiles of kStep, and with positions a band
/// and scratch for four warps.
template <int kWidth, int kStep>
constexpr std::size_t backward_bytes(bool position, int skew_floats) {
  const std::size_t tiles = (2 * kRows + 4 * kStep) * kPitch<kWidth> * sizeof(Bf16);
  return tiles + (position ? BandRing<kWidth, kStep>::kElements * sizeof(Bf16) + 4 * skew_floats * sizeof(float) : 0);
}

/// What the backward kernels read of the forward pass, per query.
struct Saved {
  const float *log_normalizer, *delta;

  /// Copies those of kStep queries to shared memory.
  template <int kStep>
  __device__ void load(const Problem& p, int b, int h, int first_query, float* normalizers, float* deltas) const {
    if (threadIdx.x >= kStep) return;
    const int row = min(p.queries - 1, first_query + static_cast<int>(threadIdx.x));
    const std::int64_t index = (static_cast<std::int64_t>(b) * p.heads + h) * p.queries + row;
    normalizers[threadIdx.x] = log_normalizer[index];
    deltas[threadIdx.x] = delta[index];
  }
};

/// Turns logits (in `weights`) and dout . value (in `dweights`) of one element into the weight that met the value, and
/// the derivative for the unscaled logit.
__device__ inline void differentiate(const Problem& p, int b, int h, int query, int key, bool check, float normalizer,
                                     float delta, float& weight, float& dweight) {
  float probability = exp2f(weight * (p.scale * kLog2e) - normalizer * kLog2e);
  if (check && !p.visible(b, query, key)) probability = 0;
  const float factor = p.dropout > 0 ? dropout_factor(p, b, h, query, key) : 1.0f;
  weight = probability * factor;
  dweight = probability == 0 ? 0.0f : p.scale * probability * (factor * dweight - delta);
}

}  // namespace switchyard::cuda
