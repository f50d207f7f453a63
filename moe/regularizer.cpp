#include "moe/regularizer.h"

#include <cmath>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/norm.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/shape.h"

namespace switchyard::moe {

// In logarithms, because the mean probability of an expert may round to 0, where m log m has no derivative.
Variable entropy_regularizer(const Variable& scores) {
  check(scores.rank() == 3 && scores.numel() > 0, "entropy_regularizer: scores must be [N, H, E], got ",
        scores.shape());
  const auto tokens = static_cast<double>(scores.size(0)), slots = static_cast<double>(scores.size(1));
  const Variable by_expert = permute(log_softmax(scores), {1, 2, 0});  // [H, E, N]
  const Variable log_mean = logsumexp(by_expert) + -std::log(tokens);  // [H, E]
  return sum(exp(log_mean) * log_mean) * (1 / slots);
}

}  // namespace switchyard::moe
