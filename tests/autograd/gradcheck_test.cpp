#include "autograd/gradcheck.h"

#include <gtest/gtest.h>

#include "autograd/node.h"
#include "autograd/ops/attention.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/expert_matmul.h"
#include "autograd/ops/index.h"
#include "autograd/ops/loss.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/norm.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/routing.h"
#include "autograd/ops/shape.h"
#include "core/rng.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using ops::Activation;
using ops::Rows;
using ops::Unary;
using testing::random_tensor;

/// One op, as a function of f64 inputs drawn from [low, high).
struct Row {
  std::string name;
  std::vector<Shape> shapes;
  std::function<Variable(const Variables&)> f;
  double low = -1, high = 1;
};

/// f, drawing the same random numbers at every call.
std::function<Variable(const Variables&)> same_numbers(std::function<Variable(const Variables&)> f) {
  return [f = std::move(f)](const Variables& in) {
    default_generator(default_device()).set_step_offset(0);
    return f(in);
  };
}

void add_elementwise(std::vector<Row>& rows) {
  const auto f = [](Unary op) { return [op](const Variables& in) { return unary(op, in[0]); }; };
  for (const Unary op : {Unary::identity, Unary::negate, Unary::exp, Unary::square, Unary::abs, Unary::relu,
                         Unary::gelu, Unary::gelu_tanh, Unary::silu, Unary::sigmoid, Unary::tanh, Unary::softplus})
    rows.push_back({"unary_" + std::string(name_of(op)), {{3, 7}}, f(op), -3, 3});
  for (const Unary op : {Unary::log, Unary::sqrt})
    rows.push_back({"unary_" + std::string(name_of(op)), {{3, 7}}, f(op), 0.5, 3});
  for (const Activation a : {Activation::identity, Activation::relu, Activation::gelu, Activation::silu})
    rows.push_back(
        {"activate_" + std::string(name_of(a)), {{5}}, [a](const Variables& in) { return activate(a, in[0]) * 2.0; }});
  rows.push_back({"exp", {{2, 3}}, [](const Variables& in) { return exp(in[0]); }});
  rows.push_back({"log", {{2, 3}}, [](const Variables& in) { return log(in[0]); }, 0.5, 2});
  rows.push_back({"relu", {{2, 3}}, [](const Variables& in) { return relu(in[0]); }});
  rows.push_back({"sigmoid", {{2, 3}}, [](const Variables& in) { return sigmoid(in[0]); }});
  rows.push_back({"tanh", {{2, 3}}, [](const Variables& in) { return tanh(in[0]); }});
  rows.push_back({"scale_and_shift", {{4}}, [](const Variables& in) { return -(in[0] * 3.0) + 2.0 * in[0] + 1.5; }});

  const std::vector<std::pair<std::string, std::vector<Shape>>> pairs = {
      {"same", {{2, 3}, {2, 3}}},    {"row", {{2, 3}, {3}}},   {"column", {{2, 1}, {2, 3}}},
      {"both", {{4, 1, 3}, {2, 1}}}, {"scalar", {{}, {2, 2}}}, {"one_element", {{1}, {1, 1}}}};
  for (const auto& [how, shapes] : pairs) {
    rows.push_back({"add_" + how, shapes, [](const Variables& in) { return in[0] + in[1]; }});
    rows.push_back({"subtract_" + how, shapes, [](const Variables& in) { return in[0] - in[1]; }});
    rows.push_back({"multiply_" + how, shapes, [](const Variables& in) { return in[0] * in[1]; }});
    rows.push_back({"divide_" + how, shapes, [](const Variables& in) { return in[0] / in[1]; }, 0.5, 2});
  }
  rows.push_back({"multiply_by_itself", {{3}}, [](const Variables& in) { return in[0] * in[0]; }});
  const Tensor condition = random_tensor({4, 3}, 5, DType::boolean);
  rows.push_back({"where", {{4, 3}, {3}}, [condition](const Variables& in) { return where(condition, in[0], in[1]); }});
  rows.push_back({"where_broadcast_condition", {{2, 4, 3}, {}}, [condition](const Variables& in) {
                    return where(condition, in[0], in[1]);
                  }});
  rows.push_back({"dropout", {{5, 7}}, same_numbers([](const Variables& in) { return dropout(in[0], 0.4); })});
}

void add_shape_and_reduce(std::vector<Row>& rows) {
  rows.push_back({"reshape", {{2, 6}}, [](const Variables& in) { return reshape(in[0], {3, -1}); }});
  rows.push_back(
      {"reshape_of_transposed", {{2, 3}}, [](const Variables& in) { return reshape(transpose(in[0], 0, 1), {6}); }});
  rows.push_back({"transpose", {{2, 3, 4}}, [](const Variables& in) { return transpose(in[0], -1, 0); }});
  rows.push_back({"permute", {{2, 3, 4}}, [](const Variables& in) { return permute(in[0], {2, 0, 1}); }});
  rows.push_back({"slice", {{5, 3}}, [](const Variables& in) { return slice(in[0], 0, 1, 4); }});
  rows.push_back({"slice_empty", {{5, 3}}, [](const Variables& in) {
                    return concat({slice(in[0], 0, 2, 2), in[0]}, 0);
                  }});
  rows.push_back({"broadcast_to", {{3, 1}}, [](const Variables& in) { return broadcast_to(in[0], {2, 3, 4}); }});
  rows.push_back({"concat", {{2, 1}, {2, 3}, {2, 2}}, [](const Variables& in) { return concat(in, 1); }});
  rows.push_back({"concat_with_itself", {{2, 3}}, [](const Variables& in) { return concat({in[0], in[0]}, 0); }});
  rows.push_back({"sum", {{2, 3}}, [](const Variables& in) { return sum(in[0]); }});
  rows.push_back({"sum_axis", {{2, 3, 4}}, [](const Variables& in) { return sum(in[0], {1}); }});
  rows.push_back({"sum_axes_kept", {{2, 3, 4}}, [](const Variables& in) { return sum(in[0], {-1, 0}, true); }});
  rows.push_back({"mean", {{2, 3}}, [](const Variables& in) { return mean(in[0]); }});
  rows.push_back({"mean_axis", {{2, 3, 4}}, [](const Variables& in) { return mean(in[0], {-1}); }});
}

void add_products(std::vector<Row>& rows) {
  const auto product = [](const Variables& in) { return matmul(in[0], in[1]); };
  rows.push_back({"matmul", {{3, 5}, {5, 2}}, product});
  rows.push_back({"matmul_batched", {{2, 3, 5}, {2, 5, 4}}, product});
  rows.push_back({"matmul_broadcast", {{2, 1, 3, 5}, {3, 5, 4}}, product});
  rows.push_back({"matmul_one_matrix_for_all", {{2, 3, 5}, {5, 4}}, product});
  rows.push_back({"matmul_transposed", {{5, 3}, {2, 5}}, [](const Variables& in) {
                    return matmul(transpose(in[0], 0, 1), transpose(in[1], 0, 1));
                  }});
  rows.push_back({"matmul_one", {{1, 1}, {1, 1}}, product});
  rows.push_back({"linear", {{2, 3, 5}, {4, 5}}, [](const Variables& in) { return linear(in[0], in[1]); }});
  rows.push_back(
      {"linear_bias", {{3, 5}, {4, 5}, {4}}, [](const Variables& in) { return linear(in[0], in[1], in[2]); }});
  for (const auto activation : {ops::Activation::relu, ops::Activation::gelu})
    rows.push_back({"linear_" + std::string(ops::name_of(activation)),
                    {{3, 5}, {4, 5}, {4}},
                    [activation](const Variables& in) { return linear_activation(in[0], in[1], in[2], activation); }});
  rows.push_back({"linear_of_a_view", {{3, 2, 5}, {4, 5}, {4}}, [](const Variables& in) {
                    return linear(transpose(in[0], 0, 1), in[1], in[2]);
                  }});
}

void add_norms_and_softmax(std::vector<Row>& rows) {
  rows.push_back(
      {"layer_norm", {{3, 7}, {7}, {7}}, [](const Variables& in) { return layer_norm(in[0], in[1], in[2], 1e-5); }});
  rows.push_back(
      {"layer_norm_plain", {{2, 3, 5}}, [](const Variables& in) { return layer_norm(in[0], {}, {}, 1e-5); }});
  rows.push_back({"layer_norm_of_a_view", {{5, 3}, {5}, {5}}, [](const Variables& in) {
                    return layer_norm(transpose(in[0], 0, 1), in[1], in[2], 1e-3);
                  }});
  rows.push_back({"rms_norm", {{3, 7}, {7}}, [](const Variables& in) { return rms_norm(in[0], in[1], 1e-6); }});
  rows.push_back({"rms_norm_plain", {{3, 7}}, [](const Variables& in) { return rms_norm(in[0], {}, 1e-6); }});
  // Both results matter in a residual stream, and either may have no successor.
  const auto added = [](bool with_sum, bool with_normed) {
    return [=](const Variables& in) {
      const AddedNorm rms = add_rms_norm(in[0], in[1], in[2], 1e-6);
      const AddedNorm layer = add_layer_norm(rms.sum, rms.normed, in[2], in[3], 1e-5);
      return concat({with_sum ? layer.sum : layer.normed, with_normed ? layer.normed : layer.sum}, 0);
    };
  };
  const std::vector<Shape> stream = {{3, 7}, {3, 7}, {7}, {7}};
  rows.push_back({"add_norm", stream, added(true, true)});
  rows.push_back({"add_norm_sum_only", stream, added(true, false)});
  rows.push_back({"add_norm_normed_only", stream, added(false, true)});
  rows.push_back({"add_norm_plain", {{2, 5}}, [](const Variables& in) {
                    const AddedNorm layer = add_layer_norm(in[0], {}, {}, {}, 1e-3);
                    return layer.normed * add_rms_norm(layer.sum, {}, {}, 1e-3).sum;
                  }});
  rows.push_back({"softmax", {{3, 7}}, [](const Variables& in) { return softmax(in[0]); }, -3, 3});
  rows.push_back({"log_softmax", {{3, 7}}, [](const Variables& in) { return log_softmax(in[0]); }, -3, 3});
  rows.push_back({"logsumexp", {{2, 3, 5}}, [](const Variables& in) { return logsumexp(in[0]); }, -3, 3});
  rows.push_back({"softmax_of_one", {{4, 1}}, [](const Variables& in) { return softmax(in[0]) * in[0]; }});
}

void add_index_and_loss(std::vector<Row>& rows) {
  const Tensor ids = Tensor::from<std::int64_t>({1, 4, 1, 0, 1, 3}, {2, 3});
  rows.push_back({"embedding", {{5, 4}}, [ids](const Variables& in) { return embedding(in[0], ids); }});
  const Tensor index = Tensor::from<std::int32_t>({2, 0, 4, 4, 1, 3}, {3, 2});
  rows.push_back({"gather_last", {{3, 5}}, [index](const Variables& in) { return gather_last(in[0], index); }});
  const Tensor chosen = Tensor::from<std::int32_t>({2, 0, 4, 3, 1, 3}, {3, 2});
  rows.push_back({"gates_sigmoid", {{3, 5}}, [chosen](const Variables& in) {
                    return expert_gates(in[0], chosen, ops::GateFunction::sigmoid, DType::f64);
                  }});
  rows.push_back({"gates_softmax", {{3, 5}}, [chosen](const Variables& in) {
                    return expert_gates(in[0], chosen, ops::GateFunction::softmax, DType::f64);
                  }});
  rows.push_back({"gates_softmax_of_chosen", {{3, 5}}, [chosen](const Variables& in) {
                    return expert_gates(in[0], chosen, ops::GateFunction::softmax_of_chosen, DType::f64);
                  }});
  const Tensor targets = Tensor::from<std::int64_t>({2, -100, 0, 4, -100, 3, 2}, {7});
  rows.push_back({"cross_entropy",
                  {{7, 5}},
                  [targets](const Variables& in) { return cross_entropy(in[0], targets) * 3.0; },
                  -3,
                  3});
  rows.push_back({"cross_entropy_other_ignore_index",
                  {{7, 5}},
                  [targets](const Variables& in) {
                    return cross_entropy(in[0], Tensor::from<std::int64_t>({2, 1, 0, 4, 1, 3, 2}, {7}), 2);
                  },
                  -3,
                  3});
  rows.push_back({"linear_cross_entropy", {{7, 3}, {5, 3}}, [targets](const Variables& in) {
                    return linear_cross_entropy(in[0], in[1], {}, targets) * 3.0;
                  }});
  rows.push_back({"linear_cross_entropy_bias", {{7, 3}, {5, 3}, {5}}, [targets](const Variables& in) {
                    return linear_cross_entropy(in[0], in[1], in[2], targets);
                  }});
}

void add_attention(std::vector<Row>& rows) {
  // B 2, T 3, S 5, H 2, d 4, dv 3: more keys than queries, an offset of 2.
  const std::vector<Shape> shapes = {{2, 3, 2, 4}, {2, 5, 2, 4}, {2, 5, 2, 3}};
  const auto row = [&](std::string name, const ops::AttentionOptions& options, std::vector<Shape> given) {
    rows.push_back({"attention_" + std::move(name), std::move(given), same_numbers([options](const Variables& in) {
                      return attention(in[0], in[1], in[2], options, in.size() > 3 ? in[3] : Variable());
                    })});
  };
  ops::AttentionOptions plain;
  plain.scale = 0.7;
  row("plain", plain, shapes);
  row("one_query", plain, {{1, 1, 1, 2}, {1, 1, 1, 2}, {1, 1, 1, 1}});
  ops::AttentionOptions causal = plain;
  causal.causal = true;
  row("causal", causal, {{2, 5, 2, 4}, {2, 5, 2, 4}, {2, 5, 2, 3}});
  row("causal_without_offset", causal, shapes);
  causal.query_offset = 2;
  row("causal_offset", causal, shapes);
  ops::AttentionOptions masked = plain;
  masked.mask = Tensor::zeros({3, 5}, DType::boolean);
  masked.mask.slice(1, 1, 3).fill(1);
  masked.mask.slice(0, 1, 2).fill(1);  // the second query sees nothing
  row("mask", masked, shapes);
  ops::AttentionOptions padded = causal;
  padded.key_padding = Tensor::zeros({2, 5}, DType::boolean);
  padded.key_padding.slice(0, 0, 1).slice(1, 0, 3).fill(1);
  row("causal_padding", padded, shapes);
  masked.key_padding = padded.key_padding;
  row("mask_and_padding", masked, shapes);
  ops::AttentionOptions xl = causal;
  xl.position_zero = 4;  // distances -4 .. 0
  row("xl_causal", xl, {shapes[0], shapes[1], shapes[2], {5, 2, 4}});
  ops::AttentionOptions both_ways = plain;
  both_ways.position_zero = 2;  // distances -2 .. 4
  row("xl_both_ways", both_ways, {shapes[0], shapes[1], shapes[2], {7, 2, 4}});
  both_ways.key_padding = padded.key_padding;
  row("xl_padding", both_ways, {shapes[0], shapes[1], shapes[2], {7, 2, 4}});
  ops::AttentionOptions dropped = causal;
  dropped.dropout = 0.3;
  row("dropout", dropped, shapes);
  dropped.position_zero = 4;
  row("xl_dropout", dropped, {shapes[0], shapes[1], shapes[2], {5, 2, 4}});
  rows.push_back({"attention_of_views", {{2, 2, 3, 4}, {2, 2, 5, 4}, {2, 2, 5, 3}}, [causal](const Variables& in) {
                    return attention(transpose(in[0], 1, 2), transpose(in[1], 1, 2), transpose(in[2], 1, 2), causal);
                  }});
  rows.push_back({"attention_of_one_source", {{1, 4, 2, 3}}, [plain](const Variables& in) {
                    return attention(in[0], in[0], in[0], plain);
                  }});

  const auto tables = [](std::int64_t rotated) {
    return ops::rope_tables(9, rotated, 100, DType::f64, default_device());
  };
  for (const std::int64_t rotated : {2, 6})
    rows.push_back({"rope_" + std::to_string(rotated) + "_of_6",
                    {{2, 3, 2, 6}},
                    [t = tables(rotated)](const Variables& in) { return rope(in[0], t, 5); }});
  rows.push_back({"rope_in_place", {{2, 3, 2, 6}}, [t = tables(4)](const Variables& in) {
                    return rope(rope(in[0] * 2.0, t, 5, true), t, 1, true) * 0.5;
                  }});
}

Variable none_or(const Variables& in, std::size_t i, bool wanted) { return wanted ? in[i] : Variable(); }

void add_expert_matmul(std::vector<Row>& rows) {
  // N 5, H 2, E 3, C 2, K 4, M 3. Expert 2 of slot 1 gets nothing.
  const Tensor chosen =
      Tensor::from<std::int32_t>({0, 1, 1, 0, 2, 0, 0, 1, 1, 2, 1, 0, 0, 2, 0, 1, 2, 1, 1, 0}, {5, 2, 2});
  const ops::RoutingPlan top = ops::routing_plan(chosen, 3);
  const ops::RoutingPlan masked = ops::routing_plan_from_mask(random_tensor({5, 2, 3}, 3, DType::boolean));
  const std::vector<std::pair<std::string, Rows>> kinds = {
      {"token", Rows::token}, {"row", Rows::row}, {"pair", Rows::pair}};
  const auto row_count = [](const ops::RoutingPlan& plan, Rows r) {
    return r == Rows::token ? plan.tokens : r == Rows::row ? plan.rows() : plan.max_pairs();
  };
  for (const auto& [plan_name, plan] : {std::pair{"top_k", top}, std::pair{"mask", masked}}) {
    for (const auto& [in_name, in_rows] : kinds) {
      for (const auto& [out_name, out_rows] : kinds) {
        // Rows beyond the true number of pairs hold anything.
        if (out_rows == Rows::pair && plan_name == std::string("mask")) continue;
        for (const bool bias : {false, true}) {
          std::vector<Shape> shapes = {{row_count(plan, in_rows), 4}, {6, 4, 3}, {5, 2, plan.choices}};
          if (bias) shapes.push_back({6, 3});
          rows.push_back(
              {"expert_matmul_" + std::string(plan_name) + "_" + in_name + "_to_" + out_name + (bias ? "_bias" : ""),
               shapes, [plan = plan, in_rows = in_rows, out_rows = out_rows, bias](const Variables& in) {
                 return expert_matmul(in[0], in[1], none_or(in, 3, bias), in[2], plan,
                                      {in_rows, out_rows, Activation::identity});
               }});
        }
      }
    }
  }
  for (const Activation a : {Activation::relu, Activation::gelu, Activation::silu, Activation::tanh})
    rows.push_back(
        {"expert_matmul_" + std::string(name_of(a)), {{5, 4}, {6, 4, 3}, {6, 3}}, [top, a](const Variables& in) {
           return expert_matmul(in[0], in[1], in[2], {}, top, {Rows::token, Rows::pair, a});
         }});
  // The two products of a mixture-of-experts layer, with a true number of pairs below the maximum.
  for (const Activation a : {Activation::relu, Activation::gelu})
    rows.push_back(
        {"expert_matmul_two_layers_" + std::string(name_of(a)),
         {{5, 4}, {6, 4, 3}, {6, 3}, {6, 3, 4}, {5, 2, 3}},
         [masked, a](const Variables& in) {
           const Variable h = expert_matmul(in[0], in[1], in[2], {}, masked, {Rows::token, Rows::pair, a});
           return expert_matmul(h, in[3], {}, in[4], masked, {Rows::pair, Rows::token, Activation::identity});
         }});
  for (const Activation a : {Activation::relu, Activation::silu})
    for (const bool bias : {false, true}) {
      std::vector<Shape> shapes = {{5, 4}, {6, 4, 3}, {6, 3, 2}, {5, 2, 3}};
      if (bias) shapes.push_back({6, 3});
      rows.push_back({"expert_feed_forward_" + std::string(name_of(a)) + (bias ? "_bias" : ""), shapes,
                      [masked, a, bias](const Variables& in) {
                        return expert_feed_forward(in[0], in[1], none_or(in, 4, bias), in[2], in[3], masked, a);
                      }});
    }
  rows.push_back({"expert_matmul_transposed_weight", {{5, 4}, {6, 3, 4}}, [top](const Variables& in) {
                    return expert_matmul(in[0], transpose(in[1], 1, 2), {}, {}, top,
                                         {Rows::token, Rows::row, Activation::identity});
                  }});
  rows.push_back({"expert_matmul_one_slot", {{4, 2}, {3, 2, 2}, {4, 2}}, [](const Variables& in) {
                    const Tensor index = Tensor::from<std::int32_t>({0, 2, 2, 1, 1, 0, 0, 2}, {4, 2});
                    return expert_matmul(in[0], in[1], {}, in[2], ops::routing_plan(index, 3),
                                         {Rows::token, Rows::token, Activation::identity});
                  }});
}

std::vector<Row> all_rows() {
  std::vector<Row> rows;
  add_elementwise(rows);
  add_shape_and_reduce(rows);
  add_products(rows);
  add_norms_and_softmax(rows);
  add_index_and_loss(rows);
  add_attention(rows);
  add_expert_matmul(rows);
  return rows;
}

std::vector<Row> rows_of_several_inputs() {
  std::vector<Row> rows = all_rows();
  std::erase_if(rows, [](const Row& row) { return row.shapes.size() == 1; });
  return rows;
}

class Gradcheck : public ::testing::TestWithParam<Row> {};
class GradcheckOfSeveralInputs : public ::testing::TestWithParam<Row> {};

TEST_P(Gradcheck, backward_matches_central_differences) {
  const Row& row = GetParam();
  Variables inputs;
  for (const Shape& shape : row.shapes)
    inputs.emplace_back(random_tensor(shape, 11 + inputs.size(), DType::f64, row.low, row.high), true);
  const GradcheckResult result = gradcheck(row.f, inputs);
  EXPECT_TRUE(result) << result.message;
}

// Wanting the gradient of a single input takes other branches of the backward functions.
TEST_P(GradcheckOfSeveralInputs, one_at_a_time) {
  const Row& row = GetParam();
  for (std::size_t wanted = 0; wanted < row.shapes.size(); ++wanted) {
    Variables inputs;
    for (const Shape& shape : row.shapes)
      inputs.emplace_back(random_tensor(shape, 11 + inputs.size(), DType::f64, row.low, row.high),
                          inputs.size() == wanted);
    const GradcheckResult result = gradcheck(row.f, inputs);
    EXPECT_TRUE(result) << result.message;
    for (std::size_t i = 0; i < inputs.size(); ++i) EXPECT_EQ(inputs[i].grad().defined(), i == wanted);
  }
}

INSTANTIATE_TEST_SUITE_P(op, Gradcheck, ::testing::ValuesIn(all_rows()),
                         [](const auto& instance) { return instance.param.name; });
INSTANTIATE_TEST_SUITE_P(op, GradcheckOfSeveralInputs, ::testing::ValuesIn(rows_of_several_inputs()),
                         [](const auto& instance) { return instance.param.name; });

TEST(GradcheckItself, finds_a_wrong_gradient) {
  const auto wrong = [](const Variables& in) {
    return record("wrong", ops::unary(Unary::square, in[0].data()), {in[0]},
                  [x = in[0].data()](const Tensor& dy) { return Gradients{ops::multiply(dy, x)}; });
  };
  const GradcheckResult result = gradcheck(wrong, {Variable(random_tensor({3}, 1), true)});
  EXPECT_FALSE(result);
  EXPECT_NE(result.message.find("gradcheck: input 0 element"), std::string::npos) << result.message;
}

TEST(GradcheckItself, wants_f64_leaves) {
  const auto identity = [](const Variables& in) { return in[0] * 1.0; };
  EXPECT_ERROR(gradcheck(identity, {Variable(Tensor::zeros({2}), true)}), "gradcheck: input 0 is f32, expected f64");
}

TEST(Cast, converts_the_gradient_back) {
  Variable x(random_tensor({2, 3}, 1), true);
  sum(cast(x, DType::f32) * 3.0).backward();
  EXPECT_EQ(x.grad().dtype(), DType::f64);
  EXPECT_CLOSE(x.grad(), Tensor::full({2, 3}, 3, DType::f64), 0.0);
  EXPECT_ERROR(cast(x, DType::i64), "cast: expected a floating dtype, got i64");
}

}  // namespace
}  // namespace switchyard
