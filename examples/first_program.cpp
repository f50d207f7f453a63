// Eight experts, of which each token uses two, learn the absolute value. x is [batch, tokens, width].
#include <iostream>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "core/ops/random.h"
#include "moe/sigma_moe.h"
#include "nn/optim/adamw.h"

using namespace switchyard;

int main() {
  seed_all(1);
  moe::SigmaMoe layer({.width = 16, .experts = 8, .expert_width = 32, .k = 2});
  nn::AdamW optimizer(nn::parameter_groups(layer.named_parameters(), 0.01), {.learning_rate = 3e-3});
  for (int step = 0; step <= 1000; ++step) {
    const Tensor x = ops::normal({8, 64, 16}, default_generator(Device::cpu()).next(8 * 64 * 16));
    const Variable error = layer.forward(Variable(x)).output - Variable(ops::unary(ops::Unary::abs, x));
    const Variable loss = mean(error * error);
    loss.backward();
    optimizer.step();
    optimizer.zero_grad();
    if (step % 250 == 0) std::cout << "step " << step << "  mean squared error " << loss.item<float>() << "\n";
  }
}
