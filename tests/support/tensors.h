#pragma once

#include <functional>
#include <random>
#include <vector>

#include "core/tensor.h"

namespace switchyard::testing {

inline const std::vector<DType> kFloatingDTypes = {DType::f32, DType::f64, DType::bf16};
inline const std::vector<DType> kAllDTypes = {DType::f32, DType::f64, DType::bf16,
                                              DType::i32, DType::i64, DType::boolean};

/// Calls f with every index of a shape, the last axis fastest.
inline void for_each_index(const Shape& shape, const std::function<void(const Shape&)>& f) {
  if (shape.numel() == 0) return;
  Shape index(shape.size(), 0);
  while (true) {
    f(index);
    std::int64_t axis = shape.rank() - 1;
    for (; axis >= 0; --axis) {
      if (++index[axis] < shape[axis]) break;
      index[axis] = 0;
    }
    if (axis < 0) return;
  }
}

/// One element of a CPU tensor, found by its strides alone.
inline double element(const Tensor& x, const Shape& index) {
  std::int64_t offset = 0;
  for (std::int64_t i = 0; i < x.rank(); ++i) offset += index[i] * x.strides()[i];
  return dispatch_all(x.dtype(), "element",
                      [&](auto tag) { return static_cast<double>(x.data<typename decltype(tag)::type>()[offset]); });
}

/// The element that index has in a tensor which broadcasts to the index's shape.
inline double broadcast_element(const Tensor& x, const Shape& index) {
  Shape own(index.end() - x.rank(), index.end());
  for (std::int64_t i = 0; i < x.rank(); ++i)
    if (x.shape()[i] == 1) own[i] = 0;
  return element(x, own);
}

/// An f64 tensor made of f(index).
inline Tensor tensor_of(const Shape& shape, const std::function<double(const Shape&)>& f) {
  std::vector<double> values;
  for_each_index(shape, [&](const Shape& index) { values.push_back(f(index)); });
  return Tensor::from(values, shape);
}

/// Uniform in [low, high), rounded to the dtype; integers between low and high, a fair coin for bool.
inline Tensor random_tensor(const Shape& shape, std::uint64_t seed, DType dtype = DType::f64, double low = -1,
                            double high = 1) {
  std::mt19937_64 generator(seed);
  std::uniform_real_distribution<double> real(low, high);
  std::vector<double> values(static_cast<std::size_t>(shape.numel()));
  for (double& value : values) value = dtype == DType::boolean ? static_cast<double>(generator() & 1) : real(generator);
  return Tensor::from(values, shape).to(dtype);
}

/// The same elements in several layouts: dense, axes stored in reverse order, and every second element of a larger
/// block that starts further on.
inline std::vector<Tensor> layouts(const Tensor& x) {
  std::vector<Tensor> all = {x.contiguous()};
  if (x.rank() == 0) return all;
  Shape reversed;
  for (std::int64_t i = x.rank() - 1; i >= 0; --i) reversed.push_back(i);
  all.push_back(x.permute(reversed).clone().permute(reversed));
  Shape larger = x.shape();
  for (std::int64_t& size : larger) size = 2 * size + 3;
  Tensor spread = Tensor::zeros(larger, x.dtype());
  for (std::int64_t i = 0; i < x.rank(); ++i) spread = spread.slice(i, 2, 2 + 2 * x.size(i), 2);
  spread.copy_from(x);
  all.push_back(spread);
  return all;
}

}  // namespace switchyard::testing
