#include "nn/module.h"

#include <gtest/gtest.h>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "nn/linear.h"
#include "tests/support/close.h"

namespace switchyard::nn {
namespace {

class Leaf : public Module {
 public:
  Leaf() {
    weight = register_parameter("weight", Tensor::ones({2, 3}));
    bias = register_parameter("bias", Tensor::zeros({2}), false);
    running = Tensor::full({2}, 0.5);
    count = Tensor::full({1}, 7, DType::i64);
    register_buffer("running", running);
    register_buffer("count", count);
  }
  using Module::register_buffer;
  using Module::register_module;
  using Module::register_parameter;
  Variable weight, bias;
  Tensor running, count;
};

class Tree : public Module {
 public:
  Tree() {
    scale = register_parameter("scale", Tensor::ones({1}));
    register_module("left", left);
    register_module("", inline_part);
  }
  Variable scale;
  Leaf left, inline_part;
};

std::vector<std::string> names(const std::vector<NamedParameter>& parameters) {
  std::vector<std::string> result;
  for (const NamedParameter& p : parameters) result.push_back(p.name);
  return result;
}

TEST(Module, names_parameters_buffers_and_modules_by_path) {
  Tree tree;
  EXPECT_EQ(names(tree.named_parameters()),
            (std::vector<std::string>{"scale", "left.weight", "left.bias", "weight", "bias"}));
  EXPECT_TRUE(tree.named_parameters()[1].decays);
  EXPECT_FALSE(tree.named_parameters()[2].decays);
  EXPECT_EQ(tree.named_buffers().size(), 4u);
  EXPECT_EQ(tree.named_buffers()[0].name, "left.running");
  const auto modules = tree.named_modules();
  ASSERT_EQ(modules.size(), 3u);
  EXPECT_EQ(modules[0].first, "");
  EXPECT_EQ(modules[0].second, &tree);
  EXPECT_EQ(modules[1].first, "left");
  EXPECT_EQ(modules[1].second, &tree.left);
  EXPECT_EQ(tree.parameter_count(), 1 + 2 * (6 + 2));
  EXPECT_EQ(tree.parameters().size(), 5u);
}

TEST(Module, training_mode_covers_sublayers) {
  Tree tree;
  EXPECT_TRUE(tree.training());
  tree.eval();
  EXPECT_FALSE(tree.training() || tree.left.training() || tree.inline_part.training());
  tree.train();
  EXPECT_TRUE(tree.training() && tree.left.training());
}

TEST(Module, converts_in_place) {
  Tree tree;
  const Variable handle = tree.left.weight;
  sum(handle * 2.0).backward();
  EXPECT_TRUE(handle.grad().defined());
  tree.to(DType::f64);
  EXPECT_EQ(handle.dtype(), DType::f64);
  EXPECT_FALSE(handle.grad().defined());
  EXPECT_TRUE(handle.requires_grad());
  EXPECT_EQ(tree.left.running.dtype(), DType::f64);
  EXPECT_EQ(tree.left.count.dtype(), DType::i64);
  tree.to(default_device());
  EXPECT_EQ(handle.dtype(), DType::f64);
  EXPECT_ERROR(tree.to(DType::i32), "Module::to: parameters need a floating dtype (f32, f64, bf16), got i32");
}

TEST(Module, drops_all_gradients) {
  Tree tree;
  sum(tree.left.weight).backward();
  tree.zero_grad();
  for (const Variable& p : tree.parameters()) EXPECT_FALSE(p.grad().defined());
}

TEST(Module, refuses_a_name_twice) {
  Leaf leaf;
  Leaf other;
  leaf.register_module("other", other);
  EXPECT_ERROR(leaf.register_module("other", other), "the module has a sublayer \"other\" already");
  EXPECT_ERROR(leaf.register_parameter("bias", Tensor::zeros({1})), "the module has a parameter \"bias\" already");
  EXPECT_ERROR(leaf.register_buffer("count", leaf.count), "the module has a buffer \"count\" already");
}

}  // namespace
}  // namespace switchyard::nn
