#pragma once

#include <functional>
#include <random>
#include <vector>

#include "core/tensor.h"

namespace switchyard::testing {

inline const std::vector<DType> kFloatingDTypes = {DType::f32, DType::f64, DType::bf16};
inline const std::vector<DType> kAllDTypes = {DType::f32, DType::f64, DType::bf16,
                                              DType::i32, DType::i64, DType::boolean};

/// Copies on the CPU of tensors that element() reads on a GPU, kept while the outermost for_each_index runs: what it
/// visits does not change meanwhile.
class HostCopies {
 public:
  HostCopies() : outer_(outermost_) { outermost_ = outer_ ? outer_ : this; }
  ~HostCopies() { outermost_ = outer_; }
  HostCopies(const HostCopies&) = delete;
  HostCopies& operator=(const HostCopies&) = delete;

  static Tensor of(const Tensor& x) {
    if (!outermost_) return x.to(Device::cpu());
    for (const auto& [original, copy] : outermost_->copies_)
      if (original.storage() == x.storage() && original.raw() == x.raw() && original.shape() == x.shape() &&
          original.strides() == x.strides() && original.dtype() == x.dtype())
        return copy;
    outermost_->copies_.emplace_back(x, x.to(Device::cpu()));
    return outermost_->copies_.back().second;
  }

 private:
  static inline HostCopies* outermost_ = nullptr;
  HostCopies* const outer_;
  std::vector<std::pair<Tensor, Tensor>> copies_;
};

/// Calls f with every index of a shape, the last axis fastest.
inline void for_each_index(const Shape& shape, const std::function<void(const Shape&)>& f) {
  if (shape.numel() == 0) return;
  const HostCopies copies;
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

/// One element of a tensor, found by its strides alone.
inline double element(const Tensor& x, const Shape& index) {
  if (x.device().is_cuda()) return element(HostCopies::of(x), index);
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

/// Overwrites one element, wherever the tensor lies.
inline void set_element(const Tensor& x, const Shape& index, double value) {
  Tensor place = x;
  for (std::size_t axis = 0; axis < index.size(); ++axis) place = place.select(0, index[axis]);
  place.fill(value);
}

/// An f64 tensor on the CPU, made of f(index): what a result is compared with.
inline Tensor tensor_of(const Shape& shape, const std::function<double(const Shape&)>& f) {
  const Tensor out = Tensor::empty(shape, DType::f64, Device::cpu());
  double* next = out.data<double>();
  for_each_index(shape, [&](const Shape& index) { *next++ = f(index); });
  return out;
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

/// d(objective())/d(parameter) by central differences; the parameter, dense and f64, is as before afterwards.
inline Tensor numeric_gradient(const Tensor& parameter, const std::function<double()>& objective) {
  const Tensor flat = parameter.view({-1});
  std::vector<double> values = flat.to_vector<double>();
  for (std::int64_t i = 0; i < flat.numel(); ++i) {
    double& value = values[static_cast<std::size_t>(i)];
    const double old = value, step = 1e-5;
    set_element(flat, {i}, old + step);
    const double above = objective();
    set_element(flat, {i}, old - step);
    value = (above - objective()) / (2 * step);
    set_element(flat, {i}, old);
  }
  return Tensor::from(values, parameter.shape());
}

/// A bool tensor in which about `percent` of the elements are set.
template <class Random>
Tensor random_mask(const Shape& shape, Random& random, unsigned percent) {
  return tensor_of(shape, [&](const Shape&) { return random() % 100 < percent ? 1.0 : 0.0; })
      .to(DType::boolean)
      .to(default_device());
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
