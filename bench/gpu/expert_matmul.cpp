// Expert products at the shapes of the layers, 64 x 512 tokens: forward, and the gradients of input, weights and gates.

#include "core/ops/expert_matmul.h"

#include "bench/gpu/row.h"
#include "core/ops/routing.h"

namespace switchyard::bench {
namespace {

constexpr std::int64_t kTokens = 64 * 512;

enum class Part { forward, input_gradient, gate_gradient, weight_gradient };

struct Product {
  std::string name;
  std::int64_t slots, experts, k;  ///< experts of each slot, of which a row chooses k
  std::int64_t inner, outer;
  ops::ExpertMatmulOptions options;
  bool gated;
};

/// A sigma-MoE's up and down products.
void add_feed_forward(std::vector<Product>& all, std::int64_t width, std::int64_t experts, std::int64_t size,
                      std::int64_t k) {
  using ops::Rows;
  const std::string name =
      std::to_string(width) + "_" + std::to_string(experts) + "x" + std::to_string(size) + "_k" + std::to_string(k);
  all.push_back({name + "_up", 1, experts, k, width, size, {Rows::token, Rows::pair, ops::Activation::relu}, false});
  all.push_back({name + "_down", 1, experts, k, size, width, {Rows::pair, Rows::token}, true});
}

std::vector<Product> products() {
  using ops::Rows;
  std::vector<Product> all;
  all.push_back({"4_heads_value_4x112_k2", 4, 4, 2, 1024, 112, {Rows::token, Rows::row}, true});
  all.push_back({"4_heads_output_4x112_k2", 4, 4, 2, 112, 1024, {Rows::row, Rows::token}, true});
  add_feed_forward(all, 1024, 32, 128, 4);
  add_feed_forward(all, 1024, 128, 128, 16);
  add_feed_forward(all, 2048, 64, 1024, 8);
  add_feed_forward(all, 4096, 8, 14336, 2);
  return all;
}

Row expert_product(const Product& product, Part part) {
  const auto& [name, slots, experts, k, inner, outer, options, gated] = product;
  const Tensor scores = random_tensor({kTokens, slots, experts}, DType::f32);
  const auto plan = ops::routing_plan(ops::top_k(scores, k), experts);
  const auto rows = [&](ops::Rows kind) {
    return kind == ops::Rows::token ? plan.tokens : kind == ops::Rows::row ? plan.rows() : plan.max_pairs();
  };
  const Tensor x = random_tensor({rows(options.input), inner}), dy = random_tensor({rows(options.output), outer});
  const Tensor weight = random_tensor({slots * experts, inner, outer});
  const Tensor gates = gated ? random_tensor({kTokens, slots, k}) : Tensor();
  ops::ExpertMatmulOptions linear = options;  // the derivative of the activation is another op's
  linear.activation = ops::Activation::identity;
  const auto call = [&] {
    switch (part) {
      case Part::forward: ops::expert_matmul(x, weight, {}, gates, plan, options); break;
      case Part::input_gradient:
        ops::expert_matmul_input_backward(dy, x, weight, {}, gates, plan, linear, true, false);
        break;
      case Part::gate_gradient:
        ops::expert_matmul_input_backward(dy, x, weight, {}, gates, plan, linear, false, true);
        break;
      case Part::weight_gradient: ops::expert_matmul_weight_backward(dy, x, gates, plan, linear, false); break;
    }
  };
  const double operand_bytes = 2 * static_cast<double>(rows(options.input) * inner + rows(options.output) * outer) +
                               2 * static_cast<double>(weight.numel());
  return {.ms = median_ms(call),
          .dense_ms = dense_ms(plan.max_pairs(), {{inner, outer}}, false),
          .flops = 2.0 * static_cast<double>(plan.max_pairs()) * static_cast<double>(inner * outer),
          .bytes = operand_bytes};
}

}  // namespace

std::vector<Benchmark> expert_matmul_benchmarks() {
  std::vector<Benchmark> all;
  for (const Product& product : products())
    for (const auto& [suffix, part] :
         {std::pair{"_forward", Part::forward}, std::pair{"_dx", Part::input_gradient},
          std::pair{"_dw", Part::weight_gradient}, std::pair{"_dgates", Part::gate_gradient}})
      if (part != Part::gate_gradient || product.gated)
        all.push_back({"expert_" + product.name + suffix, [product, part] { return expert_product(product, part); }});
  return all;
}

}  // namespace switchyard::bench
