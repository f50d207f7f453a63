#include "moe/conversion/projection.h"

#include <cmath>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "core/ops/norm.h"

namespace switchyard::moe {
namespace {

ProjectionMlpOptions checked(const ProjectionMlpOptions& options) {
  check(options.inputs >= 1 && options.outputs >= 1 && options.hidden >= 1, "ProjectionMlp: ", options.inputs,
        " inputs, ", options.hidden, " hidden neurons and ", options.outputs, " outputs, expected at least 1 each");
  check(!options.residual || options.inputs == options.outputs,
        "ProjectionMlp: a residual connection needs as many "
        "outputs as inputs, got ",
        options.inputs, " inputs and ", options.outputs, " outputs");
  return options;
}

/// x to the nearest integer, halves to the even one, whatever the floating-point environment.
double round_half_to_even(double x) { return x - std::remainder(x, 1.0); }

}  // namespace

std::int64_t projection_width(std::int64_t inputs, std::int64_t outputs, double flops_factor) {
  check(inputs >= 1 && outputs >= 1, "projection_width: ", inputs, " inputs and ", outputs,
        " outputs, expected 1 or more");
  check(std::isfinite(flops_factor) && flops_factor > 0, "projection_width: flops_factor is ", flops_factor,
        ", expected a positive number");
  const auto in = static_cast<double>(inputs), out = static_cast<double>(outputs);
  const double width = round_half_to_even(flops_factor * (in * out + out) / (in + out + 1));
  check(width >= 1, "projection_width: flops_factor ", flops_factor, " leaves no neuron for ", inputs, " inputs and ",
        outputs, " outputs");
  return static_cast<std::int64_t>(width);
}

ProjectionMlp::ProjectionMlp(const ProjectionMlpOptions& options, Generator& generator)
    : options_(checked(options)),
      up_(options.inputs, options.hidden, true, nn::init::fan_in_normal(), generator),
      down_(options.hidden, options.outputs, true, nn::init::fan_in_normal(), generator) {
  register_module("up", up_);
  register_module("down", down_);
}

Variable ProjectionMlp::forward(const Variable& x) const {
  check(x.rank() >= 1 && x.size(-1) == options_.inputs, "ProjectionMlp: x must be [..., ", options_.inputs, "], got ",
        x.shape());
  const Variable y = down_.forward(linear_activation(x, up_.weight(), up_.bias(), options_.activation));
  return options_.residual ? x + y : y;
}

DenseWeights ProjectionMlp::weights() const {
  return {up_.weight().data(), up_.bias().data(), {}, {}, down_.weight().data(), down_.bias().data()};
}

Variable distillation_loss(const Variable& student, const Tensor& teacher) {
  check(teacher.defined() && teacher.shape() == student.shape(), "distillation_loss: the teacher's output must be ",
        student.shape(), ", got ", teacher.defined() ? teacher.shape() : Shape{});
  const DType dtype = ops::compute_dtype(student.dtype());
  return mean(unary(ops::Unary::square, cast(student, dtype) - Variable(teacher.to(dtype))));
}

}  // namespace switchyard::moe
