#include "autograd/gradcheck.h"

#include <cmath>

#include "autograd/grad_mode.h"
#include "core/philox.h"

namespace switchyard {
namespace {

double objective(const Tensor& output, const std::vector<double>& weights) {
  const std::vector<double> values = output.to_vector<double>();
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
  return sum;
}

void set_element(const Tensor& tensor, std::int64_t index, double value) {
  tensor.view({-1}).slice(0, index, index + 1).fill(value);
}

}  // namespace

GradcheckResult gradcheck(const std::function<Variable(const Variables&)>& f, const Variables& inputs, double tolerance,
                          double step) {
  const Variable output = f(inputs);
  std::vector<double> weights(static_cast<std::size_t>(output.numel()));
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = 2.0 * uniform_from_bits(philox_element(7, 0, i)) - 1.0;
  for (const Variable& input : inputs)
    if (input.requires_grad()) input.zero_grad();
  output.backward(Tensor::from(weights, output.shape()).to(output.dtype()).to(output.device()));

  NoGradGuard no_grad;
  GradcheckResult result;
  for (std::size_t n = 0; n < inputs.size(); ++n) {
    const Variable& input = inputs[n];
    if (!input.requires_grad()) continue;
    check(input.dtype() == DType::f64, "gradcheck: input ", n, " is ", input.dtype(), ", expected f64");
    check(input.data().is_contiguous(), "gradcheck: input ", n, " is not contiguous");
    const std::vector<double> values = input.data().to_vector<double>();
    const std::vector<double> analytic =
        input.grad().defined() ? input.grad().to_vector<double>() : std::vector<double>(values.size(), 0.0);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto index = static_cast<std::int64_t>(i);
      set_element(input.data(), index, values[i] + step);
      const double above = objective(f(inputs).data(), weights);
      set_element(input.data(), index, values[i] - step);
      const double below = objective(f(inputs).data(), weights);
      set_element(input.data(), index, values[i]);
      const double numeric = (above - below) / (2 * step);
      const double error = std::abs(analytic[i] - numeric) / std::max(1.0, std::abs(numeric));
      if (error > result.worst || std::isnan(error)) {
        result.worst = error;
        std::ostringstream text;
        text << "gradcheck: input " << n << " element " << i << ": backward gives " << analytic[i]
             << ", central differences " << numeric;
        result.message = text.str();
      }
      if (!(error <= tolerance)) result.ok = false;
    }
  }
  return result;
}

}  // namespace switchyard
