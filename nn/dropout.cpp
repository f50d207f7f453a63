#include "nn/dropout.h"

#include "autograd/ops/elementwise.h"

namespace switchyard::nn {

Dropout::Dropout(double probability) : probability_(probability) {
  check(probability >= 0 && probability < 1, "Dropout: probability ", probability, ", expected 0 <= p < 1");
}

Variable Dropout::forward(const Variable& x) const { return training() ? dropout(x, probability_) : x; }

}  // namespace switchyard::nn
