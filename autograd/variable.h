#pragma once

#include <memory>
#include <vector>

#include "core/tensor.h"

namespace switchyard {

class Node;
struct VariableState;

/// A Tensor that takes part in a gradient computation. Like Tensor it is a handle: copies are the same variable.
///
/// A variable made by the user with requires_grad is a *leaf*; backward() adds the derivative to its grad().
/// A variable returned by a differentiable op remembers the op instead.
class Variable {
 public:
  /// Undefined: stands for "no input" or "no bias".
  Variable() = default;
  explicit Variable(Tensor data, bool requires_grad = false);

  bool defined() const { return state_ != nullptr; }
  const Tensor& data() const;
  /// The accumulated gradient of a leaf; undefined before the first backward().
  const Tensor& grad() const;
  bool requires_grad() const;

  const Shape& shape() const { return data().shape(); }
  std::int64_t size(std::int64_t axis) const { return data().size(axis); }
  std::int64_t rank() const { return data().rank(); }
  std::int64_t numel() const { return data().numel(); }
  DType dtype() const { return data().dtype(); }
  Device device() const { return data().device(); }
  template <class T>
  T item() const {
    return data().item<T>();
  }

  /// Replaces a leaf's elements (to move or convert a parameter); the gradient is dropped.
  void set_data(Tensor data) const;
  /// Replaces a leaf's gradient; an undefined tensor drops it.
  void set_grad(Tensor grad) const;
  void zero_grad() const { set_grad({}); }

  /// The same elements, cut off from the graph.
  Variable detach() const;

  /// Computes the gradients of this variable for all leaves it depends on and adds them to their grad(). `seed` is
  /// the derivative of the final result for this variable; undefined means 1 and needs a single element. Frees what
  /// the ops saved; a second call on the same graph throws.
  void backward(const Tensor& seed = {}) const;

  const std::shared_ptr<VariableState>& state() const { return state_; }

 private:
  friend Variable variable_from_node(Tensor data, std::shared_ptr<Node> node, int output);
  std::shared_ptr<VariableState> state_;
};

using Variables = std::vector<Variable>;

/// The elements of an optional operand; undefined where the variable is.
inline Tensor data_or_none(const Variable& v) { return v.defined() ? v.data() : Tensor{}; }

}  // namespace switchyard
