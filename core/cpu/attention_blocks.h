#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "core/cpu/gemm.h"
#include "core/cpu/vector_math.h"
#include "core/kernels/attention.h"
#include "core/parallel.h"
#include "core/philox.h"

// Attention on the CPU, the part that forward and backward share. A head is worked through in blocks of queries: the
// block's logits against all keys it may see are one product of the BLAS library and stay in the cache until they have
// met the values. Heads are spread over the threads.
namespace switchyard::cpu::attention_blocks {

using ops::AttentionOptions;

/// Queries per block: few, so that causal blocks waste little and long rows of logits stay in the cache.
inline std::int64_t block_queries(std::int64_t keys) {
  return std::clamp<std::int64_t>(65536 / std::max<std::int64_t>(keys, 1), 16, 64);
}

/// One head's rows in the compute type: in place, or copied where the tensor's dtype or strides are no use to BLAS.
template <class T>
class HeadRows {
 public:
  using A = accumulate_t<T>;

  /// x [B, T, H, d]; or [T, H, d] with batch 0.
  HeadRows(const Tensor& x, std::int64_t batch, std::int64_t head) {
    if (!x.defined()) return;
    const std::int64_t axis = x.rank() - 3;
    const T* data = x.data<T>() + (axis > 0 ? batch * x.stride(0) : 0) + head * x.stride(axis + 1);
    count = x.size(axis);
    width = x.size(axis + 2);
    stride_ = x.stride(axis);
    if constexpr (std::is_same_v<T, A>) {
      if (stride_ >= width) {
        data_ = data;
        return;
      }
    }
    copy_.resize(static_cast<std::size_t>(count * width));
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t c = 0; c < width; ++c) {
        copy_[static_cast<std::size_t>(i * width + c)] = static_cast<A>(data[i * stride_ + c]);
      }
    }
    data_ = copy_.data();
    stride_ = width;
  }

  const A* row(std::int64_t i) const { return data_ + i * stride_; }
  MatrixView<A> rows_from(std::int64_t i) const { return {row(i), stride_}; }

  std::int64_t count = 0, width = 0;

 private:
  const A* data_ = nullptr;
  std::int64_t stride_ = 0;
  std::vector<A> copy_;
};

/// One head's rows of a dense result, summed in the compute type: in place, or in a copy that store() writes out.
template <class T>
class HeadSums {
 public:
  using A = accumulate_t<T>;

  /// Starts as zeros. x [B, T, H, d] dense.
  HeadSums(const Tensor& x, std::int64_t batch, std::int64_t head)
      : count_(x.size(1)), width_(x.size(3)), result_stride_(x.size(2) * x.size(3)) {
    result_ = x.data<T>() + batch * count_ * result_stride_ + head * width_;
    if constexpr (std::is_same_v<T, A>) {
      data_ = result_;
      stride = result_stride_;
      for (std::int64_t i = 0; i < count_; ++i) std::fill(row(i), row(i) + width_, A{0});
    } else {
      copy_.assign(static_cast<std::size_t>(count_ * width_), A{0});
      data_ = copy_.data();
      stride = width_;
    }
  }

  A* row(std::int64_t i) { return data_ + i * stride; }
  void store() {
    if constexpr (!std::is_same_v<T, A>) {
      for (std::int64_t i = 0; i < count_; ++i) {
        for (std::int64_t c = 0; c < width_; ++c) result_[i * result_stride_ + c] = static_cast<T>(row(i)[c]);
      }
    }
  }

  std::int64_t stride = 0;

 private:
  std::int64_t count_, width_, result_stride_;
  T* result_;
  A* data_;
  std::vector<A> copy_;
};

/// The queries first .. first + count - 1 of one head, and the keys 0 .. keys - 1 that any of them may see.
struct QueryBlock {
  std::int64_t batch, head, first, count, keys;
};

/// Keys that causality lets query `i` see.
inline std::int64_t visible_keys(const AttentionOptions& options, std::int64_t i, std::int64_t keys) {
  return options.causal ? std::clamp<std::int64_t>(i + 1 + options.query_offset, 0, keys) : keys;
}

inline QueryBlock query_block(const AttentionOptions& options, std::int64_t batch, std::int64_t head,
                              std::int64_t first, std::int64_t count, std::int64_t keys) {
  return {batch, head, first, count, visible_keys(options, first + count - 1, keys)};
}

/// The rows of position_key that a block needs. Column c of the band belongs to row first + c; query r of the block and
/// key j meet in column j + shift - r.
struct PositionBand {
  std::int64_t first = 0, count = 0, shift = 0;

  PositionBand(const AttentionOptions& options, const QueryBlock& block, std::int64_t rows) {
    const std::int64_t origin = options.position_zero - options.query_offset - block.first;  // row of r = 0, j = 0
    first = std::clamp<std::int64_t>(origin - (block.count - 1), 0, rows);
    count = std::clamp<std::int64_t>(origin + block.keys, first, rows) - first;
    shift = origin - first;
  }
  /// Keys begin .. end - 1 of query r that have a column.
  std::pair<std::int64_t, std::int64_t> keys_of(std::int64_t r, std::int64_t keys) const {
    const std::int64_t begin = std::clamp<std::int64_t>(r - shift, 0, keys);
    return {begin, std::clamp<std::int64_t>(count + r - shift, begin, keys)};
  }
};

template <class A>
std::vector<A>& resized(std::vector<A>& buffer, std::int64_t size) {
  if (static_cast<std::int64_t>(buffer.size()) < size) buffer.resize(static_cast<std::size_t>(size));
  return buffer;
}

/// What one thread needs to compute the logits of a block after a block.
template <class T>
struct Logits {
  using A = accumulate_t<T>;

  const AttentionOptions& options;
  std::vector<A> band_products = {};

  /// out [block.count, block.keys]: scale q_i . (k_j + position), -infinity where a mask hides the key. Columns beyond
  /// visible_keys are unspecified.
  void compute(const QueryBlock& block, const HeadRows<T>& query, const HeadRows<T>& key,
               const HeadRows<T>& position_key, A* out) {
    gemm<A, A>(block.count, block.keys, query.width, options.scale, query.rows_from(block.first),
               key.rows_from(0).transposed(), 0, out, block.keys);
    if (options.position_key.defined()) add_positions(block, query, position_key, out);
    constexpr A kHidden = -std::numeric_limits<A>::infinity();
    const std::int64_t keys = key.count;
    if (options.mask.defined()) {
      const bool* mask = options.mask.data<bool>() + block.first * keys;
      for (std::int64_t r = 0; r < block.count; ++r) {
        for (std::int64_t j = 0; j < block.keys; ++j) {
          out[r * block.keys + j] = mask[r * keys + j] ? kHidden : out[r * block.keys + j];
        }
      }
    }
    if (options.key_padding.defined()) {
      const bool* padding = options.key_padding.data<bool>() + block.batch * keys;
      for (std::int64_t r = 0; r < block.count; ++r) {
        for (std::int64_t j = 0; j < block.keys; ++j) {
          out[r * block.keys + j] = padding[j] ? kHidden : out[r * block.keys + j];
        }
      }
    }
  }

  void add_positions(const QueryBlock& block, const HeadRows<T>& query, const HeadRows<T>& position_key, A* out) {
    const PositionBand band(options, block, position_key.count);
    A* products = resized(band_products, block.count * band.count).data();
    gemm<A, A>(block.count, band.count, query.width, options.scale, query.rows_from(block.first),
               position_key.rows_from(band.first).transposed(), 0, products, band.count);
    for (std::int64_t r = 0; r < block.count; ++r) {
      const auto [begin, end] = band.keys_of(r, block.keys);
      const A* from = products + r * band.count + band.shift - r;
      A* to = out + r * block.keys;
      for (std::int64_t j = begin; j < end; ++j) to[j] += from[j];
    }
  }
};

template <class A>
A maximum(const A* x, std::int64_t count) {
  A largest = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : largest)
  for (std::int64_t j = 0; j < count; ++j) largest = x[j] > largest ? x[j] : largest;
  return largest;
}

/// x[j] = e^(x[j] - shift); returns their sum. NaN stays NaN.
template <class A>
A exp_shifted(A* x, std::int64_t count, A shift) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < count; ++j) {
    x[j] = fast_exp(x[j] - shift);
    sum += x[j];
  }
  return sum;
}

/// Turns one row of logits into unnormalised probabilities, 0 from `visible` to `keys`. Returns their sum, and the log
/// of the sum of the logits' exponentials: -infinity for a row that sees nothing.
template <class A>
std::pair<A, A> softmax_row(A* row, std::int64_t visible, std::int64_t keys) {
  std::fill(row + visible, row + keys, A{0});
  A largest = maximum(row, visible);
  // A largest of -infinity means that all are hidden, or NaN: NaN comes through any finite shift.
  if (largest == -std::numeric_limits<A>::infinity()) largest = 0;
  const A sum = exp_shifted(row, visible, largest);
  return {sum, largest + std::log(sum)};
}

/// The dropout factors, 0 or 1 / (1 - p), of one row of probabilities.
template <class A>
class Dropout {
 public:
  explicit Dropout(const AttentionOptions& options) : options_(options) {
    if (active())
      start_ = static_cast<std::uint64_t>(options.stream.base.data<std::int64_t>()[0]) + options.stream.offset;
  }
  bool active() const { return options_.dropout > 0; }

  /// out[j] = row[j] times the factor of element `first` + j of the stream.
  void apply(const A* row, std::uint64_t first, std::int64_t count, A* out) const {
    const float probability = static_cast<float>(options_.dropout);
    const A keep = static_cast<A>(1 / (1 - options_.dropout));
    for (std::int64_t j = 0; j < count;) {
      const std::uint64_t element = first + static_cast<std::uint64_t>(j);
      const auto words = philox(options_.stream.seed, start_ + element / 4);
      for (std::uint64_t word = element % 4; word < 4 && j < count; ++word, ++j) {
        out[j] = uniform_from_bits(words[word]) < probability ? A{0} : row[j] * keep;
      }
    }
  }

 private:
  const AttentionOptions& options_;
  std::uint64_t start_ = 0;
};

/// The stream's element number of query i's first key.
inline std::uint64_t first_element(const Tensor& query, const QueryBlock& block, std::int64_t i, std::int64_t keys) {
  return static_cast<std::uint64_t>(((block.batch * query.size(2) + block.head) * query.size(1) + i) * keys);
}

}  // namespace switchyard::cpu::attention_blocks
