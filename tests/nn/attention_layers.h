#pragma once

#include <memory>
#include <vector>

#include "nn/attention.h"

// Small attention layers, one of every kind of position, for tests.
namespace switchyard::nn {

inline constexpr std::int64_t kWidth = 6, kHeads = 2, kHeadWidth = 4;

struct Position {
  const char* name;
  PositionOptions options;
};
inline const std::vector<Position> kPositions = {{"none", {PositionKind::none, 0, 0}},
                                                 {"rope", {PositionKind::rope, 1, 100}},
                                                 {"rope_half", {PositionKind::rope, 0.5, 10000}},
                                                 {"rope_nothing", {PositionKind::rope, 0, 10000}},
                                                 {"xl", {PositionKind::xl, 0, 0}}};

inline MultiHeadAttentionOptions options_with(const PositionOptions& position) {
  MultiHeadAttentionOptions options;
  options.width = kWidth;
  options.heads = kHeads;
  options.head_width = kHeadWidth;
  options.position = position;
  return options;
}

inline std::unique_ptr<MultiHeadAttention> make(const MultiHeadAttentionOptions& options, DType dtype = DType::f64) {
  Generator generator(4);
  auto layer = std::make_unique<MultiHeadAttention>(options, generator);
  layer->to(dtype);
  return layer;
}

/// Four query heads, two heads of keys and values.
inline MultiHeadAttentionOptions grouped_options(const PositionOptions& position) {
  MultiHeadAttentionOptions options = options_with(position);
  options.heads = 4;
  options.key_value_heads = 2;
  options.bias = true;
  return options;
}

}  // namespace switchyard::nn
