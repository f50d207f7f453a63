#include "autograd/ops/attention.h"

#include "autograd/node.h"

namespace switchyard {

// Saves q, k, v, the output and one number per query; probabilities are recomputed block by block.
Variable attention(const Variable& query, const Variable& key, const Variable& value, ops::AttentionOptions options,
                   const Variable& position_key) {
  if (position_key.defined()) options.position_key = position_key.data();
  if (options.dropout > 0) {
    const std::int64_t weights = query.size(0) * query.size(1) * query.size(2) * key.size(1);
    options.stream = default_generator(query.device()).next(weights);
  }
  const ops::AttentionResult result = ops::attention(query.data(), key.data(), value.data(), options);
  Variables inputs = {query, key, value};
  if (position_key.defined()) inputs.push_back(position_key);
  return record("attention", result.out, inputs,
                [q = query.data(), k = key.data(), v = value.data(), result, options](const Tensor& dout) {
                  auto g = ops::attention_backward(dout, q, k, v, result, options);
                  Gradients gradients = {g.dquery, g.dkey, g.dvalue};
                  if (options.position_key.defined()) gradients.push_back(g.dposition_key);
                  return gradients;
                });
}

Variable rope(const Variable& x, const ops::RopeTables& tables, std::int64_t first_position, bool overwrite) {
  Tensor y = x.data();
  if (overwrite) ops::rope_in_place(y, tables, first_position);
  else y = ops::rope(y, tables, first_position);
  return record("rope", y, {x}, [tables, first_position](const Tensor& dy) {
    if (!is_exclusive(dy)) return Gradients{ops::rope(dy, tables, first_position, true)};
    ops::rope_in_place(dy, tables, first_position, true);
    return Gradients{dy};
  });
}

}  // namespace switchyard
