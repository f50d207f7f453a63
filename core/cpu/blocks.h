#pragma once

#include <memory>

#include "core/cpu/convert.h"
#include "core/tensor.h"

// Kernels compute on dense blocks of one type. Operands of other dtypes and strides pass through a block-sized buffer,
// so a kernel is compiled once per compute type and still takes every tensor.
namespace switchyard::cpu {

/// Elements of a block: its buffers stay in the first-level cache.
constexpr std::int64_t kBlock = 512;

/// One operand, and how far it moves from one element of a block to the next.
struct Operand {
  const Tensor& tensor;
  std::int64_t stride = 1;
  std::int64_t block = kBlock;  ///< the largest count asked for
};

/// Reads blocks of an operand as elements of type A: in place where it is that already, else through a buffer.
template <class A>
class Reader {
 public:
  Reader(const Operand& operand)
      : bytes_(operand.tensor.raw()),
        size_(static_cast<std::int64_t>(size_of(operand.tensor.dtype()))),
        stride_(operand.stride) {
    if (stride_ == 1 && operand.tensor.dtype() == dtype_of<A>()) return;
    convert_ = convert_function(operand.tensor.dtype(), dtype_of<A>());
    buffer_ = std::make_unique_for_overwrite<A[]>(static_cast<std::size_t>(operand.block));
  }

  /// `count` elements from `offset` elements behind the tensor's first; valid until the next call.
  const A* read(std::int64_t offset, std::int64_t count) {
    const std::byte* from = bytes_ + offset * size_;
    if (!buffer_) return reinterpret_cast<const A*>(from);
    convert_(from, stride_, reinterpret_cast<std::byte*>(buffer_.get()), 1, count);
    return buffer_.get();
  }

 private:
  const std::byte* bytes_;
  std::int64_t size_, stride_;
  ConvertFunction convert_ = nullptr;
  std::unique_ptr<A[]> buffer_;
};

/// Writes blocks likewise: fill target(), then call flush().
template <class A>
class Writer {
 public:
  Writer(const Operand& operand)
      : bytes_(operand.tensor.raw()),
        size_(static_cast<std::int64_t>(size_of(operand.tensor.dtype()))),
        stride_(operand.stride) {
    if (stride_ == 1 && operand.tensor.dtype() == dtype_of<A>()) return;
    convert_ = convert_function(dtype_of<A>(), operand.tensor.dtype());
    buffer_ = std::make_unique_for_overwrite<A[]>(static_cast<std::size_t>(operand.block));
  }

  A* target(std::int64_t offset) { return buffer_ ? buffer_.get() : reinterpret_cast<A*>(bytes_ + offset * size_); }
  void flush(std::int64_t offset, std::int64_t count) {
    if (buffer_)
      convert_(reinterpret_cast<const std::byte*>(buffer_.get()), 1, bytes_ + offset * size_, stride_, count);
  }

 private:
  std::byte* bytes_;
  std::int64_t size_, stride_;
  ConvertFunction convert_ = nullptr;
  std::unique_ptr<A[]> buffer_;
};

// ---- sums and maxima of a block, in a fixed order that the compiler can put into SIMD registers ----

constexpr std::int64_t kLanes = 32;

/// f(0) + ... + f(count - 1), added up in kLanes interleaved sums of type A; a short sum one after the other.
template <class A, class F>
A lane_sum(std::int64_t count, F&& f) {
  if (count < kLanes / 2) {
    A sum = 0;
    for (std::int64_t i = 0; i < count; ++i) sum += static_cast<A>(f(i));
    return sum;
  }
  A lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
#pragma omp simd
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<A>(f(i + lane));
  }
  for (std::int64_t lane = 0; i < count; ++i, ++lane) lanes[lane] += static_cast<A>(f(i));
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2)
    for (std::int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

/// The larger; NaN wins.
template <class A>
A maximum(A a, A b) {
  return (b > a || b != b) ? b : a;
}

/// The largest of `first` and count elements, NaN if one is NaN.
template <class A>
A lane_max(const A* x, std::int64_t count, A first) {
  if (count < kLanes / 2) {
    for (std::int64_t i = 0; i < count; ++i) first = maximum(first, x[i]);
    return first;
  }
  A lanes[kLanes];
  for (A& lane : lanes) lane = first;
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
#pragma omp simd
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = maximum(lanes[lane], x[i + lane]);
  }
  for (; i < count; ++i) lanes[0] = maximum(lanes[0], x[i]);
  for (std::int64_t lane = 1; lane < kLanes; ++lane) lanes[0] = maximum(lanes[0], lanes[lane]);
  return lanes[0];
}

}  // namespace switchyard::cpu
