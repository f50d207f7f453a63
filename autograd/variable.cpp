#include "autograd/variable.h"

#include "autograd/node.h"

namespace switchyard {

Variable::Variable(Tensor data, bool requires_grad) : state_(std::make_shared<VariableState>()) {
  check(data.defined(), "Variable: the tensor is undefined");
  check(!requires_grad || is_floating(data.dtype()), "Variable: a gradient needs a floating dtype, got ", data.dtype());
  state_->data = std::move(data);
  state_->requires_grad = requires_grad;
}

Variable variable_from_node(Tensor data, std::shared_ptr<Node> node, int output) {
  Variable variable(std::move(data));
  variable.state_->requires_grad = true;
  variable.state_->node = std::move(node);
  variable.state_->output = output;
  return variable;
}

const Tensor& Variable::data() const {
  check(defined(), "Variable: used before it was given a tensor");
  return state_->data;
}

const Tensor& Variable::grad() const {
  check(defined(), "Variable: used before it was given a tensor");
  return state_->grad;
}

bool Variable::requires_grad() const { return defined() && state_->requires_grad; }

void Variable::set_data(Tensor data) const {
  check(defined() && !state_->node, "set_data: only a leaf's elements can be replaced");
  state_->data = std::move(data);
  state_->grad = {};
}

void Variable::set_grad(Tensor grad) const {
  check(defined() && !state_->node, "set_grad: only a leaf has a gradient");
  check(!grad.defined() || grad.shape() == shape(), "set_grad: gradient ", grad.shape(), " for a variable of ",
        shape());
  state_->grad = std::move(grad);
}

Variable Variable::detach() const { return Variable(data()); }

void Variable::backward(const Tensor& seed) const { switchyard::backward({*this}, {seed}); }

}  // namespace switchyard
