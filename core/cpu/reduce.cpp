#include "core/kernels/reduce.h"

#include <cmath>
#include <limits>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/strided.h"

namespace switchyard::cpu {
namespace {

using ops::Reduction;

constexpr std::int64_t kGrain = 16384;
// One output's elements are reduced in pieces of this many, which then are reduced in turn: long sums use all threads,
// and their order does not depend on how many there are.
constexpr std::int64_t kRowPiece = 65536;
constexpr std::int64_t kColumnPiece = 4096;

/// Wide totals (double, i64) over elements read as In (float, double, i64).
template <class Wide>
struct Sum {
  static constexpr Wide kStart = 0;
  static Wide join(Wide a, Wide b) { return a + b; }
  template <class In>
  static Wide block(const In* x, std::int64_t count) {
    return lane_sum<Wide>(count, [x](std::int64_t i) { return x[i]; });
  }
};

template <class Wide>
struct Max {
  static constexpr Wide kStart = std::numeric_limits<Wide>::has_infinity ? -std::numeric_limits<Wide>::infinity()
                                                                         : std::numeric_limits<Wide>::lowest();
  static Wide join(Wide a, Wide b) { return maximum(a, b); }
  template <class In>
  static Wide block(const In* x, std::int64_t count) {
    return static_cast<Wide>(lane_max<In>(x, count,
                                          std::numeric_limits<In>::has_infinity ? -std::numeric_limits<In>::infinity()
                                                                                : std::numeric_limits<In>::lowest()));
  }
};

/// The axes of x cut in two: those that stay, walked together with out, and those that are reduced.
struct Split {
  StridedLoop<2> kept;  ///< operands out, x
  StridedLoop<1> reduced;
  bool columns;  ///< the densest axis of x stays

  static Split of(const Tensor& x, const Tensor& out) {
    Shape kept_sizes, kept_x, kept_out, reduced_sizes, reduced_x;
    std::int64_t densest_kept = std::numeric_limits<std::int64_t>::max(), densest_reduced = densest_kept;
    for (std::int64_t i = 0; i < x.rank(); ++i) {
      const std::int64_t size = x.shape()[i], stride = x.strides()[i];
      if (size == out.shape()[i]) {
        kept_sizes.push_back(size);
        kept_x.push_back(stride);
        kept_out.push_back(out.strides()[i]);
        if (size > 1) densest_kept = std::min(densest_kept, stride);
      } else {
        reduced_sizes.push_back(size);
        reduced_x.push_back(stride);
        if (size > 1) densest_reduced = std::min(densest_reduced, stride);
      }
    }
    return {{kept_sizes, {kept_out, kept_x}}, {reduced_sizes, {reduced_x}}, densest_kept < densest_reduced};
  }
};

/// One output at a time: totals[piece * outputs + o] over runs along reduced axes.
template <class Op, class In, class Wide>
void reduce_rows(const Tensor& x, const Split& split, std::int64_t pieces, Wide* totals) {
  const std::int64_t outputs = split.kept.numel(), length = split.reduced.numel();
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / std::min(length, kRowPiece));
  const std::int64_t stride = split.reduced.inner_strides()[0];
  parallel_for(0, outputs * pieces, grain, [&](std::int64_t begin, std::int64_t end) {
    Reader<In> reader(Operand{x, stride});
    for (std::int64_t first = begin; first < end;) {
      const std::int64_t piece = first / outputs;
      const std::int64_t last = std::min(end, (piece + 1) * outputs);
      Wide* to = totals + first;
      split.kept.walk(first - piece * outputs, last - piece * outputs, [&](const auto& at, std::int64_t run) {
        for (std::int64_t o = 0; o < run; ++o) {
          const std::int64_t base = at[1] + o * split.kept.inner_strides()[1];
          Wide total = Op::kStart;
          split.reduced.walk(
              piece * kRowPiece, std::min(length, (piece + 1) * kRowPiece), [&](const auto& from, std::int64_t count) {
                for (std::int64_t done = 0; done < count; done += kBlock) {
                  const std::int64_t block = std::min(kBlock, count - done);
                  total = Op::join(total, Op::block(reader.read(base + from[0] + done * stride, block), block));
                }
              });
          *to++ = total;
        }
      });
      first = last;
    }
  });
}

/// A block of neighbouring outputs at a time: totals[piece * outputs + o], adding row after row.
template <class Op, class In, class Wide>
void reduce_columns(const Tensor& x, const Split& split, std::int64_t pieces, Wide* totals) {
  const std::int64_t outputs = split.kept.numel(), length = split.reduced.numel();
  const std::int64_t blocks = (outputs + kBlock - 1) / kBlock;
  const std::int64_t kept_stride = split.kept.inner_strides()[1], stride = split.reduced.inner_strides()[0];
  const std::int64_t task = std::min(length, kColumnPiece) * std::min(outputs, kBlock);
  parallel_for(0, blocks * pieces, std::max<std::int64_t>(1, kGrain / task), [&](std::int64_t begin, std::int64_t end) {
    Reader<In> reader(Operand{x, kept_stride});
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t piece = i / blocks, first = i % blocks * kBlock, last = std::min(outputs, first + kBlock);
      Wide* to = totals + piece * outputs + first;
      split.kept.walk(first, last, [&](const auto& at, std::int64_t count) {
        std::fill(to, to + count, Op::kStart);
        split.reduced.walk(piece * kColumnPiece, std::min(length, (piece + 1) * kColumnPiece),
                           [&](const auto& from, std::int64_t rows) {
                             for (std::int64_t row = 0; row < rows; ++row) {
                               const In* values = reader.read(at[1] + from[0] + row * stride, count);
#pragma omp simd
                               for (std::int64_t c = 0; c < count; ++c)
                                 to[c] = Op::join(to[c], static_cast<Wide>(values[c]));
                             }
                           });
        to += count;
      });
    }
  });
}

template <class Op, class In, class Wide>
void reduce_as(const Tensor& x, const Tensor& out, Wide divisor) {
  const Split split = Split::of(x, out);
  const std::int64_t outputs = split.kept.numel(), length = split.reduced.numel();
  const std::int64_t piece_size = split.columns ? kColumnPiece : kRowPiece;
  const std::int64_t pieces = std::max<std::int64_t>(1, (length + piece_size - 1) / piece_size);
  std::vector<Wide> totals(static_cast<std::size_t>(outputs * pieces), Op::kStart);
  if (length > 0) {
    if (split.columns) reduce_columns<Op, In>(x, split, pieces, totals.data());
    else reduce_rows<Op, In>(x, split, pieces, totals.data());
  }
  for (std::int64_t o = 0; o < outputs; ++o) {
    for (std::int64_t piece = 1; piece < pieces; ++piece) totals[o] = Op::join(totals[o], totals[piece * outputs + o]);
    totals[o] /= divisor;
  }
  const ConvertFunction convert = convert_function(dtype_of<Wide>(), out.dtype());
  const auto size = static_cast<std::int64_t>(size_of(out.dtype()));
  const Wide* from = totals.data();
  split.kept.walk(0, outputs, [&](const auto& at, std::int64_t run) {
    convert(reinterpret_cast<const std::byte*>(from), 1, out.raw() + at[0] * size, split.kept.inner_strides()[0], run);
    from += run;
  });
}

}  // namespace

void reduce(Reduction op, const Tensor& x, const Tensor& out) {
  const bool is_max = op == Reduction::max;
  if (!is_floating(x.dtype())) {
    if (is_max) reduce_as<Max<std::int64_t>, std::int64_t>(x, out, std::int64_t{1});
    else reduce_as<Sum<std::int64_t>, std::int64_t>(x, out, std::int64_t{1});
    return;
  }
  // With no output there is nothing to divide.
  const double divisor =
      op == Reduction::mean ? static_cast<double>(x.numel()) / static_cast<double>(out.numel()) : 1.0;
  if (x.dtype() == DType::f64) {
    if (is_max) reduce_as<Max<double>, double>(x, out, divisor);
    else reduce_as<Sum<double>, double>(x, out, divisor);
  } else {
    if (is_max) reduce_as<Max<double>, float>(x, out, divisor);
    else reduce_as<Sum<double>, float>(x, out, divisor);
  }
}

void argmax(const Tensor& x, const Tensor& out) {
  const std::int64_t length = x.size(-1);
  std::int64_t* const positions = out.data<std::int64_t>();
  const auto run = [&]<class A>(TypeTag<A>) {
    parallel_for(0, out.numel(), std::max<std::int64_t>(1, kGrain / length), [&](std::int64_t begin, std::int64_t end) {
      Reader<A> reader(Operand{x, 1, length});
      for (std::int64_t row = begin; row < end; ++row) {
        const A* values = reader.read(row * length, length);
        const A best = lane_max(values, length, values[0]);
        std::int64_t i = 0;
        while (best == best ? values[i] != best : values[i] == values[i]) ++i;
        positions[row] = i;
      }
    });
  };
  if (!is_floating(x.dtype())) run(TypeTag<std::int64_t>{});
  else if (x.dtype() == DType::f64) run(TypeTag<double>{});
  else run(TypeTag<float>{});
}

void count_nonfinite(const Tensor& x, const Tensor& out) {
  const std::int64_t pieces = (x.numel() + kRowPiece - 1) / kRowPiece;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(pieces));
  const auto run = [&]<class A>(TypeTag<A>) {
    parallel_for(0, pieces, 1, [&](std::int64_t begin, std::int64_t end) {
      Reader<A> reader(Operand{x});
      for (std::int64_t piece = begin; piece < end; ++piece) {
        const std::int64_t last = std::min(x.numel(), (piece + 1) * kRowPiece);
        for (std::int64_t at = piece * kRowPiece; at < last; at += kBlock) {
          const std::int64_t count = std::min(kBlock, last - at);
          const A* values = reader.read(at, count);
          // x - x is 0 for finite x and NaN otherwise.
          counts[piece] +=
              lane_sum<std::int64_t>(count, [values](std::int64_t i) { return values[i] - values[i] != 0; });
        }
      }
    });
  };
  if (x.dtype() == DType::f64) run(TypeTag<double>{});
  else run(TypeTag<float>{});
  *out.data<std::int64_t>() = lane_sum<std::int64_t>(pieces, [&](std::int64_t i) { return counts[i]; });
}

}  // namespace switchyard::cpu
