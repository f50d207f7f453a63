#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "autograd/variable.h"

namespace switchyard {

/// One tensor per output (or input) of an op; undefined where there is no gradient.
using Gradients = std::vector<Tensor>;

/// Maps the gradients of an op's outputs to those of its inputs, in order.
using BackwardFunction = std::function<Gradients(const Gradients& output_gradients)>;
/// The same for an op with one output.
using BackwardFunction1 = std::function<Gradients(const Tensor& output_gradient)>;
/// The same for an op that can add to what other ops have contributed, as matrix products can at no cost. Where sums[i]
/// is defined, it is the dense gradient of input i so far; the op may add its part to it and return that tensor.
using AddingBackward1 = std::function<Gradients(const Tensor& output_gradient, const Gradients& sums)>;

/// Where a gradient flows on to: the output of another node, or a leaf; neither where none is wanted.
struct Edge {
  std::shared_ptr<Node> node;
  int output = 0;
  std::shared_ptr<VariableState> leaf;
};

/// One executed op. It holds edges to the ops before it, never their outputs, so that a tensor which no backward
/// function saved is freed as soon as the forward pass is done with it.
class Node {
 public:
  /// What a gradient of an output looks like, for outputs that get none.
  struct OutputSpec {
    Shape shape;
    DType dtype;
    Device device;
  };

  const char* name = "";
  std::string scope;           ///< part of the model that called it, in whose name the backward pass runs too
  std::uint64_t sequence = 0;  ///< grows with every node: a node comes after all that feed it
  std::vector<Edge> inputs;
  std::vector<OutputSpec> outputs;
  /// Gradients of the outputs, sums of the inputs so far -> gradients of the inputs. Empty once used.
  std::function<Gradients(const Gradients&, const Gradients&)> backward;
};

/// What all handles of one Variable share.
struct VariableState {
  Tensor data;
  Tensor grad;
  bool requires_grad = false;
  std::shared_ptr<Node> node;  // null for a leaf
  int output = 0;
};

/// Wraps the result of an op. If gradients are on and one of `inputs` wants one, the result remembers `backward`, which
/// returns one gradient per input (undefined for none). `name` must be a literal.
///
/// What `backward` captures is what the op saves. Capture data() tensors, never Variables: a captured output variable
/// would keep the graph alive for ever.
Variable record(const char* name, Tensor output, const Variables& inputs, BackwardFunction1 backward);
Variable record(const char* name, Tensor output, const Variables& inputs, AddingBackward1 backward);
/// The same for several outputs. With `always`, the node is made even when no input wants a gradient.
Variables record_many(const char* name, std::vector<Tensor> outputs, const Variables& inputs, BackwardFunction backward,
                      bool always = false);

/// An op written by a user: forward and backward in one small class, with what is saved as members.
///
///     struct Cube : CustomOp {
///       Tensor x;
///       std::vector<Tensor> forward(const std::vector<Tensor>& in) override { x = in[0]; ... }
///       Gradients backward(const Gradients& dy) override { ... }
///     };
///     Variable y = apply_op(std::make_shared<Cube>(), {x})[0];
class CustomOp {
 public:
  virtual ~CustomOp() = default;
  /// Name in error messages; a literal.
  virtual const char* name() const { return "custom op"; }
  /// The outputs. What the backward pass needs is to be kept in members.
  virtual std::vector<Tensor> forward(const std::vector<Tensor>& inputs) = 0;
  /// One gradient per input; undefined for none.
  virtual Gradients backward(const Gradients& output_gradients) = 0;
};

/// Runs a custom op and records it. Use a new instance for every call.
Variables apply_op(const std::shared_ptr<CustomOp>& op, const Variables& inputs);

/// True if nobody else can see the gradient's elements, so that its holder may overwrite them.
bool is_exclusive(const Tensor& gradient);

/// Backward from several variables at once; seeds as in Variable::backward (an undefined one means 1).
void backward(const Variables& roots, const std::vector<Tensor>& seeds);

}  // namespace switchyard
