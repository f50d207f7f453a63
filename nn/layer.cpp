#include "nn/layer.h"

#include "autograd/ops/elementwise.h"

namespace switchyard::nn {

std::string sublayer_name(ProjectionKind kind) {
  constexpr std::array kNames = {"query", "key", "value", "output"};
  return kNames[static_cast<std::size_t>(kind)];
}

Variable add_regularizers(const Variable& a, const Variable& b) {
  if (!a.defined()) return b;
  return b.defined() ? a + b : a;
}

}  // namespace switchyard::nn
