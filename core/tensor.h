#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"
#include "core/storage.h"

namespace switchyard {

/// A strided view of a block of memory: storage + offset + shape + strides + dtype + device.
///
/// A Tensor is a handle: copying one copies no elements, and views (transpose, slice, ...) share the
/// elements of the tensor they were made from. A Tensor knows nothing of gradients; that is Variable's
/// work, one floor up. A default-constructed Tensor is undefined and stands for "none".
class Tensor {
 public:
  Tensor() = default;

  /// Uninitialised elements.
  static Tensor empty(const Shape& shape, DType dtype = DType::f32, Device device = default_device());
  static Tensor zeros(const Shape& shape, DType dtype = DType::f32, Device device = default_device());
  static Tensor ones(const Shape& shape, DType dtype = DType::f32, Device device = default_device());
  static Tensor full(const Shape& shape, double value, DType dtype = DType::f32, Device device = default_device());
  /// A rank-0 tensor.
  static Tensor scalar(double value, DType dtype = DType::f32, Device device = default_device());
  /// 0, 1, ..., count - 1.
  static Tensor arange(std::int64_t count, DType dtype = DType::i64, Device device = default_device());
  /// Copies `values` (row-major, exactly shape.numel() of them) into a new tensor on the default device.
  template <class T>
  static Tensor from(const std::vector<T>& values, const Shape& shape);
  template <class T>
  static Tensor from(std::initializer_list<T> values, const Shape& shape) {
    return from(std::vector<T>(values), shape);
  }
  /// A view of existing memory; `strides` in elements, `offset` in elements from the block's start.
  static Tensor view_of(std::shared_ptr<Storage> storage, const Shape& shape, const Shape& strides, std::int64_t offset,
                        DType dtype);
  /// Uninitialised tensor of the same shape, dtype and device, dense whatever the strides of `like`.
  static Tensor empty_like(const Tensor& like);
  static Tensor zeros_like(const Tensor& like);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }
  std::int64_t rank() const { return shape_.rank(); }
  /// Size of one axis; negative counts from the end.
  std::int64_t size(std::int64_t axis) const;
  std::int64_t stride(std::int64_t axis) const;
  std::int64_t numel() const { return shape_.numel(); }
  std::size_t bytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device() : Device::cpu(); }
  /// True when the elements lie row-major without gaps.
  bool is_contiguous() const;
  const std::shared_ptr<Storage>& storage() const { return storage_; }

  /// Address of the first element; throws Error unless T is the dtype. Constness is the handle's, not the data's.
  template <class T>
  T* data() const {
    check(defined(), "data: the tensor is undefined");
    check(dtype_of<T>() == dtype_, "data: asked for ", dtype_of<T>(), ", the tensor is ", dtype_);
    return reinterpret_cast<T*>(raw());
  }
  /// Address of the first element, untyped.
  std::byte* raw() const { return storage_->data() + static_cast<std::size_t>(offset_) * size_of(dtype_); }

  // Views: no element is copied.
  Tensor transpose(std::int64_t axis_a, std::int64_t axis_b) const;
  Tensor permute(const Shape& axes) const;
  /// Elements begin, begin + step, ... below end along one axis. 0 <= begin <= end <= size, step >= 1.
  Tensor slice(std::int64_t axis, std::int64_t begin, std::int64_t end, std::int64_t step = 1) const;
  /// Element `index` of one axis, which disappears.
  Tensor select(std::int64_t axis, std::int64_t index) const;
  Tensor unsqueeze(std::int64_t axis) const;
  Tensor squeeze(std::int64_t axis) const;
  /// Repeats axes of size 1 (stride 0) and adds leading axes.
  Tensor broadcast_to(const Shape& shape) const;
  /// Same elements, another shape; one size may be -1. Throws Error where strides make a view impossible.
  Tensor view(const Shape& shape) const;
  /// As view, but copies where a view is impossible.
  Tensor reshape(const Shape& shape) const;

  // Copies. On the CPU and between devices alike.
  /// This tensor if it is contiguous, else a dense copy.
  Tensor contiguous() const;
  Tensor clone() const;
  /// This tensor if it has that dtype already, else a converted dense copy.
  Tensor to(DType dtype) const;
  /// This tensor if it is there already, else a dense copy on that device.
  Tensor to(Device device) const;
  /// Overwrites the elements with those of `source` (same shape after broadcasting; dtype is converted).
  void copy_from(const Tensor& source) const;
  void fill(double value) const;

  /// The one element, converted to T. Waits for the device; throws Error unless numel() is 1.
  template <class T>
  T item() const;
  /// All elements, row-major, converted to T. Waits for the device.
  template <class T>
  std::vector<T> to_vector() const;

  /// dtype, shape and the values, long axes abbreviated to their ends.
  std::string to_string() const;

 private:
  bool try_view(const Shape& shape, Shape& strides) const;
  Shape resolve_shape(const char* op, Shape shape) const;

  std::shared_ptr<Storage> storage_;
  Shape shape_, strides_;
  std::int64_t offset_ = 0;
  DType dtype_ = DType::f32;
};

std::ostream& operator<<(std::ostream& out, const Tensor& tensor);

extern template Tensor Tensor::from<float>(const std::vector<float>&, const Shape&);
extern template Tensor Tensor::from<double>(const std::vector<double>&, const Shape&);
extern template Tensor Tensor::from<std::int32_t>(const std::vector<std::int32_t>&, const Shape&);
extern template Tensor Tensor::from<std::int64_t>(const std::vector<std::int64_t>&, const Shape&);

}  // namespace switchyard
