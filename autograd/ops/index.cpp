#include "autograd/ops/index.h"

#include "autograd/node.h"
#include "core/ops/index.h"

namespace switchyard {

Variable embedding(const Variable& table, const Tensor& ids) {
  return record("embedding", ops::embedding(table.data(), ids), {table}, [ids, rows = table.size(0)](const Tensor& dy) {
    return Gradients{ops::embedding_backward(dy, ids, rows)};
  });
}

Variable gather_last(const Variable& x, const Tensor& index) {
  return record("gather_last", ops::gather_last(x.data(), index), {x}, [index, size = x.size(-1)](const Tensor& dy) {
    return Gradients{ops::gather_last_backward(dy, index, size)};
  });
}

}  // namespace switchyard
