#include "core/tensor.h"

#include <algorithm>
#include <cstring>

#include "core/ops/copy.h"

namespace switchyard {

// ---- construction ----

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  std::size_t bytes = size_of(dtype);
  for (const std::int64_t size : shape) {
    check(size >= 0, "empty: negative size in shape ", shape);
    check(size == 0 || bytes <= (std::size_t{1} << 62) / static_cast<std::size_t>(size), "empty: shape ", shape, " of ",
          dtype, " is too large to address");
    bytes *= static_cast<std::size_t>(size);
  }
  return view_of(Storage::allocate(bytes, device), shape, contiguous_strides(shape), 0, dtype);
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) { return full(shape, 0, dtype, device); }

Tensor Tensor::ones(const Shape& shape, DType dtype, Device device) { return full(shape, 1, dtype, device); }

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor out = empty(shape, dtype, device);
  out.fill(value);
  return out;
}

Tensor Tensor::scalar(double value, DType dtype, Device device) { return full({}, value, dtype, device); }

Tensor Tensor::arange(std::int64_t count, DType dtype, Device device) {
  check(count >= 0, "arange: negative count ", count);
  Tensor out = empty({count}, DType::i64, Device::cpu());
  for (std::int64_t i = 0; i < count; ++i) out.data<std::int64_t>()[i] = i;
  return out.to(dtype).to(device);
}

template <class T>
Tensor Tensor::from(const std::vector<T>& values, const Shape& shape) {
  check(static_cast<std::int64_t>(values.size()) == shape.numel(), "from: ", values.size(),
        " values do not fill shape ", shape);
  Tensor out = empty(shape, dtype_of<T>(), Device::cpu());
  if (!values.empty()) std::memcpy(out.raw(), values.data(), values.size() * sizeof(T));
  return out.to(default_device());
}

template Tensor Tensor::from<float>(const std::vector<float>&, const Shape&);
template Tensor Tensor::from<double>(const std::vector<double>&, const Shape&);
template Tensor Tensor::from<std::int32_t>(const std::vector<std::int32_t>&, const Shape&);
template Tensor Tensor::from<std::int64_t>(const std::vector<std::int64_t>&, const Shape&);

Tensor Tensor::view_of(std::shared_ptr<Storage> storage, const Shape& shape, const Shape& strides, std::int64_t offset,
                       DType dtype) {
  Tensor out;
  out.storage_ = std::move(storage);
  out.shape_ = shape;
  out.strides_ = strides;
  out.offset_ = offset;
  out.dtype_ = dtype;
  return out;
}

Tensor Tensor::empty_like(const Tensor& like) { return empty(like.shape(), like.dtype(), like.device()); }

Tensor Tensor::zeros_like(const Tensor& like) { return zeros(like.shape(), like.dtype(), like.device()); }

// ---- reading ----

std::int64_t Tensor::size(std::int64_t axis) const { return shape_[normalize_axis("size", axis, rank())]; }

std::int64_t Tensor::stride(std::int64_t axis) const { return strides_[normalize_axis("stride", axis, rank())]; }

bool Tensor::is_contiguous() const {
  std::int64_t expected = 1;
  for (std::int64_t i = rank() - 1; i >= 0; --i) {
    if (shape_[i] == 0) return true;
    if (shape_[i] != 1 && strides_[i] != expected) return false;
    expected *= shape_[i];
  }
  return true;
}

template <class T>
T Tensor::item() const {
  check(defined(), "item: the tensor is undefined");
  check(numel() == 1, "item: needs exactly one element, shape is ", shape_);
  return to_vector<T>()[0];
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  check(defined(), "to_vector: the tensor is undefined");
  const Tensor host = to(Device::cpu()).contiguous();
  std::vector<T> values(static_cast<std::size_t>(numel()));
  dispatch_all(dtype_, "to_vector", [&](auto tag) {
    using S = typename decltype(tag)::type;
    std::transform(host.data<S>(), host.data<S>() + numel(), values.begin(), [](S v) { return static_cast<T>(v); });
  });
  return values;
}

#define SWITCHYARD_READ(T)            \
  template T Tensor::item<T>() const; \
  template std::vector<T> Tensor::to_vector<T>() const;
SWITCHYARD_READ(float)
SWITCHYARD_READ(double)
SWITCHYARD_READ(std::int32_t)
SWITCHYARD_READ(std::int64_t)
SWITCHYARD_READ(bool)
#undef SWITCHYARD_READ

// ---- views ----

Tensor Tensor::transpose(std::int64_t axis_a, std::int64_t axis_b) const {
  Tensor out = *this;
  axis_a = normalize_axis("transpose", axis_a, rank());
  axis_b = normalize_axis("transpose", axis_b, rank());
  std::swap(out.shape_[axis_a], out.shape_[axis_b]);
  std::swap(out.strides_[axis_a], out.strides_[axis_b]);
  return out;
}

Tensor Tensor::permute(const Shape& axes) const {
  check(axes.rank() == rank(), "permute: ", axes, " does not name every axis of ", shape_, " once");
  Tensor out = *this;
  std::vector<bool> seen(axes.size(), false);
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const std::int64_t axis = normalize_axis("permute", axes[i], rank());
    check(!seen[axis], "permute: ", axes, " does not name every axis of ", shape_, " once");
    seen[axis] = true;
    out.shape_[i] = shape_[axis];
    out.strides_[i] = strides_[axis];
  }
  return out;
}

Tensor Tensor::slice(std::int64_t axis, std::int64_t begin, std::int64_t end, std::int64_t step) const {
  axis = normalize_axis("slice", axis, rank());
  check(0 <= begin && begin <= end && end <= shape_[axis] && step >= 1, "slice: ", begin, ":", end, ":", step,
        " does not fit axis ", axis, " of ", shape_);
  Tensor out = *this;
  out.offset_ += begin * strides_[axis];
  out.shape_[axis] = (end - begin + step - 1) / step;
  out.strides_[axis] *= step;
  return out;
}

Tensor Tensor::select(std::int64_t axis, std::int64_t index) const {
  axis = normalize_axis("select", axis, rank());
  check(index >= 0 && index < shape_[axis], "select: index ", index, " is outside axis ", axis, " of ", shape_);
  return slice(axis, index, index + 1).squeeze(axis);
}

Tensor Tensor::unsqueeze(std::int64_t axis) const {
  axis = normalize_axis("unsqueeze", axis, rank() + 1);
  Tensor out = *this;
  out.shape_.insert(out.shape_.begin() + axis, 1);
  out.strides_.insert(out.strides_.begin() + axis, axis < rank() ? strides_[axis] * shape_[axis] : 1);
  return out;
}

Tensor Tensor::squeeze(std::int64_t axis) const {
  axis = normalize_axis("squeeze", axis, rank());
  check(shape_[axis] == 1, "squeeze: axis ", axis, " of ", shape_, " has not size 1");
  Tensor out = *this;
  out.shape_.erase(out.shape_.begin() + axis);
  out.strides_.erase(out.strides_.begin() + axis);
  return out;
}

Tensor Tensor::broadcast_to(const Shape& shape) const {
  check(shape.rank() >= rank() && broadcast_shapes("broadcast_to", shape_, shape) == shape, "broadcast_to: ", shape_,
        " does not broadcast to ", shape);
  Tensor out = *this;
  out.shape_ = shape;
  out.strides_.assign(shape.size(), 0);
  const std::int64_t lead = shape.rank() - rank();
  for (std::int64_t i = 0; i < rank(); ++i)
    if (shape_[i] == shape[lead + i]) out.strides_[lead + i] = strides_[i];
  return out;
}

Shape Tensor::resolve_shape(const char* op, Shape shape) const {
  std::int64_t known = 1, unknown = -1;
  for (std::int64_t i = 0; i < shape.rank(); ++i) {
    if (shape[i] == -1 && unknown < 0) {
      unknown = i;
    } else {
      check(shape[i] >= 0, op, ": bad size in shape ", shape);
      known *= shape[i];
    }
  }
  if (unknown >= 0) {
    check(known > 0 && numel() % known == 0, op, ": ", shape_, " does not fit ", shape);
    shape[unknown] = numel() / known;
  }
  check(shape.numel() == numel(), op, ": ", shape_, " has ", numel(), " elements, ", shape, " has ", shape.numel());
  return shape;
}

bool Tensor::try_view(const Shape& shape, Shape& strides) const {
  strides = contiguous_strides(shape);
  if (is_contiguous()) return true;
  // Walk both shapes from the end: every run of old axes that lie dense in memory may be cut up freely. Axes of size 1
  // have no say, whatever their strides are.
  Shape axes;
  for (std::int64_t axis = 0; axis < rank(); ++axis)
    if (shape_[axis] != 1) axes.push_back(axis);
  std::int64_t next = shape.rank() - 1;
  for (std::int64_t i = axes.rank() - 1; i >= 0;) {
    std::int64_t run = shape_[axes[i]];
    const std::int64_t run_stride = strides_[axes[i]];
    while (--i >= 0 && strides_[axes[i]] == strides_[axes[i + 1]] * shape_[axes[i + 1]]) run *= shape_[axes[i]];
    std::int64_t inside = 1;
    while (next >= 0 && inside * shape[next] <= run && (inside < run || shape[next] == 1)) {
      strides[next] = run_stride * inside;
      inside *= shape[next--];
    }
    if (inside != run) return false;
  }
  return true;  // the sizes agree, so what is left of the new shape are axes of size 1
}

Tensor Tensor::view(const Shape& shape) const {
  Tensor out = *this;
  out.shape_ = resolve_shape("view", shape);
  check(try_view(out.shape_, out.strides_), "view: ", shape_, " with strides ", strides_, " cannot be seen as ", shape,
        " without a copy; use reshape");
  return out;
}

Tensor Tensor::reshape(const Shape& shape) const {
  Tensor out = *this;
  out.shape_ = resolve_shape("reshape", shape);
  return try_view(out.shape_, out.strides_) ? out : contiguous().view(shape);
}

// ---- copies ----

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor out = empty_like(*this);
  out.copy_from(*this);
  return out;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  Tensor out = empty(shape_, dtype, device());
  out.copy_from(*this);
  return out;
}

Tensor Tensor::to(Device device) const {
  if (device == this->device()) return *this;
  Tensor out = empty(shape_, dtype_, device);
  out.copy_from(*this);
  return out;
}

void Tensor::copy_from(const Tensor& source) const { ops::copy(source, *this); }

void Tensor::fill(double value) const { ops::fill(*this, value); }

}  // namespace switchyard
