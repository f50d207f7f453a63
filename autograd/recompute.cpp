#include "autograd/recompute.h"

#include "autograd/grad_mode.h"
#include "autograd/node.h"
#include "core/rng.h"

namespace switchyard {
namespace {

/// Puts the default generator back to an earlier point of this step, and forward again at the end of the scope.
class Rewind {
 public:
  Rewind(Generator& generator, std::uint64_t offset) : generator_(generator), after_(generator.step_offset()) {
    check(offset <= after_, "recompute: the generator was reset between the forward and the backward pass");
    generator_.set_step_offset(offset);
  }
  ~Rewind() { generator_.set_step_offset(after_); }

 private:
  Generator& generator_;
  std::uint64_t after_;
};

}  // namespace

Variables recompute(const std::function<Variables(const Variables&)>& f, const Variables& inputs) {
  check(!inputs.empty(), "recompute: needs at least one input");
  if (!grad_enabled()) return f(inputs);
  Generator& generator = default_generator(inputs[0].device());
  const std::uint64_t offset = generator.step_offset();
  std::vector<Tensor> outputs;
  {
    NoGradGuard no_grad;
    for (const Variable& output : f(inputs)) outputs.push_back(output.data());
  }
  Variables detached;  // cut off from the graph, so that capturing them keeps only their elements alive
  for (const Variable& input : inputs) detached.emplace_back(input.data(), input.requires_grad());
  auto backward_again = [f, detached, offset, &generator](const Gradients& dy) {
    EnableGradGuard grad;
    Variables results;
    {
      Rewind rewind(generator, offset);
      results = f(detached);
    }
    Variables roots;
    std::vector<Tensor> seeds;
    for (std::size_t i = 0; i < results.size(); ++i) {
      if (!results[i].requires_grad()) continue;
      roots.push_back(results[i]);
      seeds.push_back(dy[i]);
    }
    backward(roots, seeds);
    Gradients gradients;
    for (const Variable& input : detached) gradients.push_back(input.grad());
    return gradients;
  };
  return record_many("recompute", std::move(outputs), inputs, std::move(backward_again), true);
}

}  // namespace switchyard
