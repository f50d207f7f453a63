#include "nn/embedding.h"

#include "autograd/ops/index.h"

namespace switchyard::nn {

Embedding::Embedding(std::int64_t count, std::int64_t width, const Initializer& init, Generator& generator) {
  check(count > 0 && width > 0, "Embedding: ", count, " rows of ", width, ", expected at least 1");
  weight_ = register_parameter("weight", init({count, width}, generator));
}

Variable Embedding::forward(const Tensor& ids) const { return embedding(weight_, ids); }

}  // namespace switchyard::nn
