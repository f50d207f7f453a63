#pragma once

#include "core/rng.h"

namespace switchyard::ops {

/// Legend: B batch, T queries, S keys, H heads, d head width.
struct AttentionOptions {
  double scale = 1;               ///< multiplies every logit
  bool causal = false;            ///< query i sees keys j <= i + query_offset
  std::int64_t query_offset = 0;  ///< keys that precede the first query (KV cache, cached segment)
  Tensor mask;                    ///< bool [T, S], true hides; or undefined
  Tensor key_padding;             ///< bool [B, S], true hides the key; or undefined
  /// Transformer-XL positions, [R, H, d] or undefined: logit(i, j) = scale q_i . (k_j + position_key[n]), where
  /// n = j - i - query_offset + position_zero. R must cover every visible pair.
  Tensor position_key;
  std::int64_t position_zero = 0;
  double dropout = 0;   ///< probability of zeroing an attention weight
  RandomStream stream;  ///< used when dropout > 0; element ((b H + h) T + i) S + j
};

struct AttentionResult {
  Tensor out;             ///< [B, T, H, d]
  Tensor log_normalizer;  ///< [B, H, T]: log of the sum of exponentials; all that the backward pass needs
};

/// softmax(scale q k^T + masks) v per head. query [B, T, H, d], key [B, S, H, d], value [B, S, H, dv], each with
/// stride 1 on its last axis. The T x S matrix is never stored whole. A query with no visible key gives 0.
AttentionResult attention(const Tensor& query, const Tensor& key, const Tensor& value, const AttentionOptions& options);

/// Of query, key, value and options.position_key; the last undefined where that is.
struct AttentionGradients {
  Tensor dquery, dkey, dvalue, dposition_key;
};
AttentionGradients attention_backward(const Tensor& dout, const Tensor& query, const Tensor& key, const Tensor& value,
                                      const AttentionResult& forward, const AttentionOptions& options);

/// The attention matrix itself, [B, H, T, S], for inspection.
Tensor attention_probabilities(const Tensor& query, const Tensor& key, const AttentionOptions& options);

/// Cosines and sines of the angles by which each position turns each channel.
struct RopeTables {
  Tensor cosine, sine;  ///< [positions, rotated]
};
/// Rotary tables: frequency of channel i is base^(-2i/rotated); columns i and i + rotated/2 are equal.
/// Computed in double, stored in `dtype` (f32 or f64).
RopeTables rope_tables(std::int64_t positions, std::int64_t rotated, double base, DType dtype, Device device);
/// Rotates the first r channels of x [B, T, H, d], pairing channel i with i + r/2; the rest pass through.
Tensor rope(const Tensor& x, const RopeTables& tables, std::int64_t first_position, bool inverse = false);
/// The same over x's own elements; touches only the channels that turn. x has stride 1 on its last axis.
void rope_in_place(const Tensor& x, const RopeTables& tables, std::int64_t first_position, bool inverse = false);

}  // namespace switchyard::ops
