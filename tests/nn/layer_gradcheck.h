#pragma once

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "core/rng.h"
#include "nn/module.h"

namespace switchyard::nn {

/// Gradcheck in f64 of f for `inputs` and every parameter of `module`, with the same random numbers at every call.
inline void expect_gradients(Module& module, const Variables& inputs,
                             const std::function<Variable(const Variables&)>& f) {
  module.to(DType::f64);
  Variables all = inputs;
  for (const Variable& p : module.parameters()) all.push_back(p);
  const auto same_numbers = [&](const Variables& in) {
    default_generator(default_device()).set_step_offset(0);
    return f(in);
  };
  const GradcheckResult result = gradcheck(same_numbers, all);
  EXPECT_TRUE(result) << result.message;
  for (const NamedParameter& p : module.named_parameters()) EXPECT_TRUE(p.variable.grad().defined()) << p.name;
}

}  // namespace switchyard::nn
