#pragma once

#include "autograd/ops/attention.h"
#include "nn/init.h"
#include "nn/layer.h"

namespace switchyard::nn {

/// How attention learns of positions: not at all; by rotating queries and keys (Su et al., 2021); by the relative terms
/// of Transformer-XL (Dai et al., 2019) without its two bias vectors.
enum class PositionKind : std::uint8_t { none, rope, xl };

struct PositionOptions {
  PositionKind kind = PositionKind::rope;
  double fraction = 1;  ///< rope: share of each head's channels that is rotated, rounded down to whole channels
  double base = 10000;  ///< rope: wavelength base
};

/// A trained vector for each absolute position, to be added to the embeddings (GPT-2, BERT, ViT). Parameter weight
/// [count, width].
class LearnedPositions : public Module {
 public:
  LearnedPositions(std::int64_t count, std::int64_t width, const Initializer& init = init::normal(0.02),
                   Generator& generator = initial_weights());

  /// The vectors of the positions first .. first + length - 1: [length, width]. Throws Error past the last one.
  Variable forward(std::int64_t length, std::int64_t first = 0) const;
  std::int64_t count() const { return weight_.size(0); }

 private:
  Variable weight_;
};

/// sinusoid(n) of Transformer-XL for the positions n = lowest .. highest: [highest - lowest + 1, width] in f32 or f64.
/// Channel 2c is sin(n f), channel 2c + 1 is cos(n f), f = 10000^(-2c / width). Computed in double.
Tensor sinusoid_table(std::int64_t lowest, std::int64_t highest, std::int64_t width, DType dtype, Device device);

/// Puts positions into the attention of one layer. Tables are made when first needed, in the compute dtype (f64 for f64
/// models, else f32), and grow with the sequence.
///
/// With xl there is a parameter projection.weight [H d, D] and logit(i, j) = scale q_i . (k_j + p_n), where
/// n = j - i - query_offset and p_n = projection sinusoid(n).
class PositionEncoding : public Module {
 public:
  /// `width` D is the model's. Throws Error where the rotated width floor(fraction * head_width) is odd.
  PositionEncoding(const PositionOptions& options, std::int64_t width, std::int64_t heads, std::int64_t head_width,
                   const Initializer& init = init::fan_in_normal(), Generator& generator = initial_weights());

  /// rope: queries or keys x [B, T, H, d] rotated, the first to position `first`; otherwise x itself. With `overwrite`
  /// x's own elements turn: nothing may read it afterwards. Scores depend on differences of positions only, so keys
  /// stay valid however many queries follow.
  Variable rotated(const Variable& x, std::int64_t first, bool overwrite = false);

  /// xl: the position keys [R, H, d] for query [B, T, H, d], starting at options.query_offset, and so many keys,
  /// starting at 0; sets options.position_zero. Undefined for the others. Those in `cache` are used if they reach far
  /// enough, or replaced by more.
  Variable relative(const Variable& query, std::int64_t keys, ops::AttentionOptions& options,
                    KeyValueCache* cache = nullptr);

 private:
  const ops::RopeTables& rope_tables(std::int64_t positions, DType dtype, Device device);
  /// Rows lowest .. highest of the sinusoid table.
  Tensor sinusoids(std::int64_t lowest, std::int64_t highest, DType dtype, Device device);

  PositionOptions options_;
  std::int64_t width_, heads_, head_width_;
  std::int64_t rotated_width_ = 0;
  Variable projection_;
  ops::RopeTables rope_;
  Tensor sinusoids_;
  std::int64_t sinusoids_lowest_ = 0;
};

}  // namespace switchyard::nn
