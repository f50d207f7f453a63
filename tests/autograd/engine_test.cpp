#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "autograd/node.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/shape.h"
#include "core/profiler.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using testing::random_tensor;

Variable leaf(std::initializer_list<double> values) {
  const auto size = static_cast<std::int64_t>(values.size());
  return Variable(Tensor::from<double>(values, {size}), true);
}

std::vector<double> gradient(const Variable& v) { return v.grad().to_vector<double>(); }

/// Sum of a column of a [2, 2] matrix.
double column_sum(const Tensor& x, std::int64_t column) {
  return testing::element(x, {0, column}) + testing::element(x, {1, column});
}

TEST(Engine, adds_up_over_backward_calls) {
  const Variable x = leaf({1, 2});
  sum(x * x).backward();
  EXPECT_EQ(gradient(x), (std::vector<double>{2, 4}));
  sum(x * 10.0).backward();
  EXPECT_EQ(gradient(x), (std::vector<double>{12, 14}));
  x.zero_grad();
  EXPECT_FALSE(x.grad().defined());
}

TEST(Engine, shared_subexpressions_are_visited_once) {
  const Variable x = leaf({2});
  int visits = 0;
  const Variable y = record("counted", ops::affine(x.data(), 3), {x}, [&visits](const Tensor& dy) {
    ++visits;
    return Gradients{ops::affine(dy, 3)};
  });
  sum(y * y + y + exp(y * 0.0) * y).backward();  // d/dy = 2 y + 1 + 1 = 14
  EXPECT_EQ(visits, 1);
  EXPECT_EQ(gradient(x), (std::vector<double>{42}));
}

TEST(Engine, a_gradient_that_reaches_two_leaves_is_not_shared_memory) {
  const Variable a = leaf({1, 1}), b = leaf({1, 1});
  sum(a + b).backward();
  sum(a * 5.0).backward();
  EXPECT_EQ(gradient(a), (std::vector<double>{6, 6}));
  EXPECT_EQ(gradient(b), (std::vector<double>{1, 1}));
}

TEST(Engine, products_add_to_a_gradient_in_place_only_where_nobody_else_sees_it) {
  const Tensor weight = random_tensor({2, 2}, 1);
  const Variable a = Variable(Tensor::ones({3, 2}, DType::f64), true), b = Variable(a.data().clone(), true);
  const Variable h = a * 1.0, g = b * 1.0;
  const Variable first = linear(h, Variable(weight)), second = linear(h, Variable(weight));
  const Tensor seed = Tensor::ones({3, 2}, DType::f64);
  backward({first, second, h + g}, {seed, seed, seed});  // the sum's gradient goes on to h and g as one tensor
  for (const double value : gradient(b)) EXPECT_EQ(value, 1);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_NEAR(gradient(a)[i], 1 + 2 * column_sum(weight, i % 2), 1e-14);
}

TEST(Engine, the_callers_seed_is_not_changed) {
  const Variable x = leaf({1, 2});
  const Tensor seed = Tensor::from<double>({3, 4}, {2});
  (x + 0.0).backward(seed);
  (x + 0.0).backward(seed);
  EXPECT_EQ(gradient(x), (std::vector<double>{6, 8}));
  EXPECT_EQ(seed.to_vector<double>(), (std::vector<double>{3, 4}));
}

TEST(Engine, deep_graphs_need_no_deep_stack) {
  const Variable x = leaf({1});
  Variable y = x;
  for (int i = 0; i < 100000; ++i) y = y + 1.0;
  sum(y).backward();
  EXPECT_EQ(gradient(x), (std::vector<double>{1}));
}

TEST(Engine, several_roots_at_once) {
  const Variable x = leaf({1, 2});
  const Variable middle = x * x;
  backward({sum(middle), middle * 2.0}, {{}, Tensor::from<double>({1, 10}, {2})});
  EXPECT_EQ(gradient(x), (std::vector<double>{2 + 4, 4 + 80}));
}

TEST(Engine, a_second_backward_says_that_the_graph_is_gone) {
  const Variable x = leaf({1, 2});
  const Variable y = sum(x * x);
  y.backward();
  EXPECT_ERROR(y.backward(), "backward: the graph was freed by an earlier backward, at op 'sum'; run the forward pass");
  EXPECT_EQ(gradient(x), (std::vector<double>{2, 4}));
}

TEST(Engine, errors_name_what_is_wrong) {
  const Variable x = leaf({1, 2});
  EXPECT_ERROR((x * 2.0).backward(), "backward: a variable of shape [2] needs a seed of the same shape");
  EXPECT_ERROR((x * 2.0).backward(Tensor::ones({3}, DType::f64)), "backward: seed [3] for a variable of shape [2]");
  EXPECT_ERROR(Variable(Tensor::ones({1})).backward(), "does not depend on any that requires a gradient");
  EXPECT_ERROR(Variable().data(), "Variable: used before it was given a tensor");
  EXPECT_ERROR(Variable(Tensor::ones({2}, DType::i64), true), "a gradient needs a floating dtype, got i64");
  EXPECT_ERROR((x * 2.0).set_data(Tensor::ones({2})), "set_data: only a leaf's elements can be replaced");
  EXPECT_ERROR(x.set_grad(Tensor::ones({3})), "set_grad: gradient [3] for a variable of [2]");
  const auto bad_op = [&](Gradients result) {
    return record("bad", x.data().clone(), {x}, [result = std::move(result)](const Tensor&) { return result; });
  };
  EXPECT_ERROR(bad_op({}).backward(x.data()), "backward: op 'bad' has 1 inputs but returned 0 gradients");
  EXPECT_ERROR(bad_op({Tensor::ones({5}, DType::f64)}).backward(x.data()),
               "backward: op 'bad' returned a gradient of shape [5] for a leaf of shape [2]");
}

TEST(Engine, detach_cuts_the_graph) {
  const Variable x = leaf({3});
  const Variable y = x * x;
  EXPECT_FALSE(y.detach().requires_grad());
  sum(y.detach() * x).backward();
  EXPECT_EQ(gradient(x), (std::vector<double>{9}));
}

TEST(Engine, no_grad_records_nothing) {
  const Variable x = leaf({1, 2});
  {
    NoGradGuard guard;
    EXPECT_FALSE(grad_enabled());
    EXPECT_FALSE((x * x).requires_grad());
    {
      EnableGradGuard inner;
      EXPECT_TRUE((x * x).requires_grad());
    }
    EXPECT_FALSE(grad_enabled());
  }
  EXPECT_TRUE((x * x).requires_grad());
}

TEST(Engine, inputs_without_a_gradient_get_none) {
  const Variable x = leaf({1, 2}), constant(Tensor::from<double>({5, 6}, {2}));
  sum(x * constant).backward();
  EXPECT_EQ(gradient(x), (std::vector<double>{5, 6}));
  EXPECT_FALSE(constant.grad().defined());
}

constexpr std::int64_t kElements = 1 << 18;
constexpr std::size_t kBytes = kElements * sizeof(double);

std::size_t in_use() { return memory_statistics(default_device()).current_bytes; }

TEST(EngineMemory, saved_tensors_are_freed_by_the_backward_pass) {
  const Variable x(Tensor::ones({kElements}, DType::f64), true);
  const std::size_t before = in_use();
  const Variable y = sum(exp(x * 2.0));  // exp saves its result
  EXPECT_GE(in_use(), before + kBytes);
  y.backward();
  EXPECT_LT(in_use(), before + kBytes + 4096) << "only the gradient of x may be left";
  EXPECT_GE(in_use(), before + kBytes);
}

TEST(EngineMemory, what_no_op_saves_is_freed_in_the_forward_pass) {
  const Variable x(Tensor::ones({kElements}, DType::f64), true);
  const std::size_t before = in_use();
  Variable y = x;
  for (int i = 0; i < 10; ++i) y = y + 1.0;
  EXPECT_LT(in_use(), before + 2 * kBytes) << "sums save nothing: one result is alive";
}

TEST(EngineMemory, a_graph_that_is_dropped_is_freed) {
  const std::size_t before = in_use();
  {
    const Variable x(Tensor::ones({kElements}, DType::f64), true);
    Variable y = x;
    for (int i = 0; i < 4; ++i) y = exp(y * 0.1);
  }
  EXPECT_EQ(in_use(), before);
}

TEST(EngineMemory, a_leaf_takes_over_its_gradient_without_a_copy) {
  const Variable x(Tensor::ones({kElements}, DType::f64), true);
  reset_peak_memory(default_device());
  const std::size_t before = in_use();
  sum(x * 2.0).backward();
  EXPECT_LT(memory_statistics(default_device()).peak_bytes, before + 2 * kBytes + 4096);
}

/// x^3, as a user would write it.
struct Cube : CustomOp {
  Tensor x;
  const char* name() const override { return "cube"; }
  std::vector<Tensor> forward(const std::vector<Tensor>& in) override {
    x = in[0];
    return {ops::multiply(x, ops::multiply(x, x))};
  }
  Gradients backward(const Gradients& dy) override {
    return {ops::multiply(dy[0], ops::affine(ops::multiply(x, x), 3))};
  }
};

/// Two results, one of them not differentiable.
struct SplitSign : CustomOp {
  Tensor positive;
  std::vector<Tensor> forward(const std::vector<Tensor>& in) override {
    positive = ops::binary(ops::Binary::less, Tensor::zeros_like(in[0]), in[0]);
    return {ops::unary(ops::Unary::abs, in[0]), positive};
  }
  Gradients backward(const Gradients& dy) override { return {ops::where(positive, dy[0], ops::affine(dy[0], -1))}; }
};

TEST(CustomOp, takes_part_in_the_graph) {
  const Variable x = leaf({1, -2, 3});
  sum(apply_op(std::make_shared<Cube>(), {x * 2.0})[0]).backward();
  EXPECT_EQ(gradient(x), (std::vector<double>{24, 96, 216}));
}

TEST(CustomOp, may_have_several_results) {
  const Variable x = leaf({1, -2});
  const Variables results = apply_op(std::make_shared<SplitSign>(), {x});
  EXPECT_FALSE(results[1].requires_grad());
  sum(results[0] * 3.0).backward();
  EXPECT_EQ(gradient(x), (std::vector<double>{3, -3}));
}

TEST(Anomaly, names_the_op_and_the_scope_of_the_forward_pass) {
  const Variable x = leaf({1, -1});
  AnomalyGuard guard;
  NameScope outer("layers.3");
  EXPECT_ERROR(
      [&] {
        NameScope inner("attention");
        return log(x);
      }(),
      "anomaly: the result of op 'unary' in layers.3.attention has 1 NaN or infinite values of 2, shape [2]");
  EXPECT_EQ(NameScope::current(), "layers.3") << "scopes close when an error passes through them";
}

/// The name of the part of the model that runs: what memory is booked to (Arena), in its backward pass.
struct BackwardScope : CustomOp {
  explicit BackwardScope(std::string& scope) : heard(scope) {}
  std::vector<Tensor> forward(const std::vector<Tensor>& in) override { return {in[0].clone()}; }
  Gradients backward(const Gradients& dy) override {
    heard = NameScope::current();
    return {dy[0]};
  }
  std::string& heard;
};

TEST(NameScope, is_back_in_the_backward_pass) {
  const Variable x(Tensor::ones({2}), true);
  std::string outer, inner;
  Variable y = apply_op(std::make_shared<BackwardScope>(outer), {x})[0];
  {
    NameScope layer("layers.3");
    NameScope part("attention");
    y = apply_op(std::make_shared<BackwardScope>(inner), {y})[0];
  }
  sum(y).backward();
  EXPECT_EQ(inner, "layers.3.attention");
  EXPECT_EQ(outer, "");
}

TEST(NameScope, is_heard_by_the_profiler_in_the_backward_pass) {
  struct Listener : ScopeListener {
    void opened(const char*, double, double) override { modules.push_back(NameScope::current()); }
    void closed() override {}
    std::vector<std::string> modules;
  } listener;
  enable_profiler(true);
  const Variable x(Tensor::ones({2}), true);
  Variable y;
  {
    NameScope scope("layers.3");
    y = x * x;
  }
  const Tensor seed = Tensor::ones({2});
  set_scope_listener(&listener);
  y.backward(seed);
  set_scope_listener(nullptr);
  enable_profiler(false);
  reset_profile();
  ASSERT_FALSE(listener.modules.empty());
  for (const std::string& module : listener.modules) EXPECT_EQ(module, "layers.3");
}

TEST(Anomaly, names_the_op_and_the_scope_of_the_backward_pass) {
  const Variable x = leaf({0, 1});
  AnomalyGuard guard;
  Variable y;
  {
    NameScope scope("head");
    y = sum(unary(ops::Unary::sqrt, x));
  }
  EXPECT_ERROR(y.backward(), "anomaly: a gradient of op 'unary' in head has 1 NaN or infinite values");
}

TEST(Anomaly, is_silent_when_off_and_when_all_is_finite) {
  const Variable x = leaf({0, -1});
  EXPECT_NO_THROW(log(x));
  AnomalyGuard guard;
  EXPECT_NO_THROW(sum(exp(x)).backward());
}

}  // namespace
}  // namespace switchyard
