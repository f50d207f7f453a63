#include "nn/position.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "autograd/ops/matmul.h"
#include "autograd/ops/shape.h"
#include "core/ops/norm.h"

namespace switchyard::nn {
namespace {

/// Tables grow by doubling, so that decoding token by token seldom makes new ones.
std::int64_t table_size(std::int64_t needed) {
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(needed, 64))));
}

}  // namespace

LearnedPositions::LearnedPositions(std::int64_t count, std::int64_t width, const Initializer& init,
                                   Generator& generator) {
  check(count > 0 && width > 0, "LearnedPositions: ", count, " positions of width ", width, ", expected at least 1");
  weight_ = register_parameter("weight", init({count, width}, generator));
}

Variable LearnedPositions::forward(std::int64_t length, std::int64_t first) const {
  check(length >= 0 && first >= 0 && first + length <= count(), "LearnedPositions: ", length, " tokens from position ",
        first, " on, expected at most ", count(), " positions");
  return slice(weight_, 0, first, first + length);
}

Tensor sinusoid_table(std::int64_t lowest, std::int64_t highest, std::int64_t width, DType dtype, Device device) {
  check(lowest <= highest && width > 0, "sinusoid_table: positions ", lowest, " to ", highest, ", width ", width);
  std::vector<double> frequency(static_cast<std::size_t>((width + 1) / 2));
  for (std::size_t c = 0; c < frequency.size(); ++c)
    frequency[c] = std::pow(10000.0, -2.0 * static_cast<double>(c) / static_cast<double>(width));
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>((highest - lowest + 1) * width));
  for (std::int64_t n = lowest; n <= highest; ++n) {
    for (std::int64_t channel = 0; channel < width; ++channel) {
      const double angle = static_cast<double>(n) * frequency[static_cast<std::size_t>(channel / 2)];
      values.push_back(channel % 2 == 0 ? std::sin(angle) : std::cos(angle));
    }
  }
  return Tensor::from(values, {highest - lowest + 1, width}).to(dtype).to(device);
}

PositionEncoding::PositionEncoding(const PositionOptions& options, std::int64_t width, std::int64_t heads,
                                   std::int64_t head_width, const Initializer& init, Generator& generator)
    : options_(options), width_(width), heads_(heads), head_width_(head_width) {
  if (options.kind == PositionKind::rope) {
    check(options.fraction >= 0 && options.fraction <= 1, "PositionEncoding: fraction ", options.fraction,
          ", expected 0 to 1");
    check(options.base > 0, "PositionEncoding: base ", options.base, ", expected more than 0");
    rotated_width_ = static_cast<std::int64_t>(std::floor(options.fraction * static_cast<double>(head_width)));
    check(rotated_width_ % 2 == 0, "PositionEncoding: ", rotated_width_, " rotated channels of head width ", head_width,
          " (fraction ", options.fraction, "), expected an even number");
  } else if (options.kind == PositionKind::xl) {
    projection_ = register_parameter("projection.weight", init({heads * head_width, width}, generator));
  }
}

const ops::RopeTables& PositionEncoding::rope_tables(std::int64_t positions, DType dtype, Device device) {
  const Tensor& table = rope_.cosine;
  if (!table.defined() || table.size(0) < positions || table.dtype() != dtype || table.device() != device)
    rope_ = ops::rope_tables(table_size(positions), rotated_width_, options_.base, dtype, device);
  return rope_;
}

Tensor PositionEncoding::sinusoids(std::int64_t lowest, std::int64_t highest, DType dtype, Device device) {
  const bool usable = sinusoids_.defined() && sinusoids_.dtype() == dtype && sinusoids_.device() == device;
  if (!usable || lowest < sinusoids_lowest_ || highest >= sinusoids_lowest_ + sinusoids_.size(0)) {
    sinusoids_lowest_ = lowest < 0 ? -table_size(-lowest) : lowest;
    sinusoids_ = sinusoid_table(sinusoids_lowest_, highest, width_, dtype, device);
  }
  return sinusoids_.slice(0, lowest - sinusoids_lowest_, highest - sinusoids_lowest_ + 1);
}

Variable PositionEncoding::rotated(const Variable& x, std::int64_t first, bool overwrite) {
  if (options_.kind != PositionKind::rope || rotated_width_ == 0) return x;
  return rope(x, rope_tables(first + x.size(1), ops::compute_dtype(x.dtype()), x.device()), first, overwrite);
}

Variable PositionEncoding::relative(const Variable& query, std::int64_t keys, ops::AttentionOptions& options,
                                    KeyValueCache* cache) {
  if (options_.kind != PositionKind::xl) return {};
  // The last query and the first key are furthest apart; a causal query sees nothing ahead of it.
  std::int64_t lowest = -(options.query_offset + query.size(1) - 1);
  const std::int64_t highest = options.causal ? 0 : std::max<std::int64_t>(keys - 1 - options.query_offset, 0);
  if (cache) {
    const Tensor& kept = cache->position_key;
    options.position_zero = cache->position_zero;
    if (kept.defined() && options.position_zero >= -lowest && highest < kept.size(0) - options.position_zero)
      return Variable(kept);
    lowest = -table_size(-lowest);
  }
  options.position_zero = -lowest;
  const Tensor table = sinusoids(lowest, highest, ops::compute_dtype(query.dtype()), query.device());
  const Variable projected = linear(Variable(table.to(query.dtype())), projection_);
  const Variable position_key = reshape(projected, {highest - lowest + 1, heads_, head_width_});
  if (cache) {
    cache->position_key = position_key.data();
    cache->position_zero = options.position_zero;
  }
  return position_key;
}

}  // namespace switchyard::nn
