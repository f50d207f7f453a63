#include "moe/switch_head.h"

#include <cmath>

#include "autograd/grad_mode.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/index.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::element;
using testing::random_tensor;
using testing::tensor_of;
using P = ProjectionKind;

SwitchHeadOptions small_options() {
  SwitchHeadOptions options;
  options.width = 6;
  options.heads = 2;
  options.head_width = 4;
  options.experts = 3;
  options.k = 2;
  options.position.kind = nn::PositionKind::none;
  return options;
}

/// Every switch of the layer at least once, and most pairs.
std::vector<SwitchHeadOptions> switch_combinations() {
  std::vector<SwitchHeadOptions> all;
  const std::vector<std::vector<P>> sets = {
      {P::value, P::output}, {P::query},         {P::key},           {P::value},
      {P::output},           {P::query, P::key}, {P::key, P::value}, {P::query, P::key, P::value, P::output}};
  const std::vector<nn::PositionKind> positions = {nn::PositionKind::none, nn::PositionKind::rope,
                                                   nn::PositionKind::xl};
  for (std::size_t i = 0; i < sets.size(); ++i)
    for (std::size_t j = 0; j < positions.size(); ++j) {
      SwitchHeadOptions options = small_options();
      options.experts_on = sets[i];
      options.position.kind = positions[j];
      options.position.fraction = 0.5;
      options.shared_selection = (i + j) % 2 == 0 && sets[i].size() > 1;
      options.selection = (i + j) % 3 == 0 ? SelectionKind::softmax : SelectionKind::sigmoid;
      options.entropy_regularizer = j == 1 ? 0.2 : 0;
      options.k = i % 3 == 2 ? 3 : 2;
      all.push_back(options);
    }
  for (const auto position : positions) {
    SwitchHeadOptions one = small_options();
    one.experts = 1;
    one.position.kind = position;
    all.push_back(one);
  }
  return all;
}

std::string describe(const SwitchHeadOptions& options) {
  std::string text = "experts " + std::to_string(options.experts) + " on ";
  for (const P p : options.experts_on) text += name_of(p);
  text += options.shared_selection ? " shared" : "";
  return text + " " + std::string(name_of(options.selection)) + " position " +
         std::to_string(static_cast<int>(options.position.kind));
}

Tensor parameter(nn::Module& module, const std::string& name) {
  for (const auto& p : module.named_parameters())
    if (p.name == name) return p.variable.data();
  return {};
}

/// gate of expert e of head h for one token; 0 where it is not among the k best.
double naive_gate(const SwitchHeadOptions& o, const Tensor& router, const Tensor& x, std::int64_t b, std::int64_t t,
                  std::int64_t h, std::int64_t e) {
  std::vector<double> scores;
  double sum = 0;
  for (std::int64_t f = 0; f < o.experts; ++f) {
    double score = 0;
    for (std::int64_t d = 0; d < o.width; ++d) score += element(router, {h * o.experts + f, d}) * element(x, {b, t, d});
    scores.push_back(score);
    sum += std::exp(score);
  }
  const double own = scores[static_cast<std::size_t>(e)];
  std::int64_t better = 0;
  for (const double score : scores) better += score > own;
  if (better >= o.k) return 0;
  return o.selection == SelectionKind::softmax ? std::exp(own) / sum : 1 / (1 + std::exp(-own));
}

/// The layer without positions, written from its definition; x is query, key and value source.
class Naive {
 public:
  Naive(SwitchHead& layer, Tensor x) : layer_(layer), o_(layer.options()), x_(std::move(x)) {}

  Tensor out() {
    const Tensor q = project("query", P::query), k = project("key", P::key), v = project("value", P::value);
    const Tensor attended = attend(q, k, v);
    const Tensor weight = parameter(layer_, "output.weight");
    return tensor_of({x_.size(0), x_.size(1), o_.width}, [&](const Shape& at) {
      double y = 0;
      for (std::int64_t h = 0; h < o_.heads; ++h)
        for (std::int64_t c = 0; c < o_.head_width; ++c) {
          const double a = element(attended, {at[0], at[1], h, c});
          if (!is_expert(P::output)) {
            y += a * element(weight, {at[2], h * o_.head_width + c});
            continue;
          }
          for (std::int64_t e = 0; e < o_.experts; ++e)
            y += gate("output", at[0], at[1], h, e) * a * element(weight, {h * o_.experts + e, c, at[2]});
        }
      return y;
    });
  }

 private:
  bool is_expert(P kind) const {
    return o_.experts > 1 && std::find(o_.experts_on.begin(), o_.experts_on.end(), kind) != o_.experts_on.end();
  }

  double gate(const std::string& name, std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t e) {
    const Tensor router = parameter(layer_, o_.shared_selection ? "router.weight" : name + "_router.weight");
    return naive_gate(o_, router, x_, b, t, h, e);
  }

  Tensor project(const std::string& name, P kind) {
    const Tensor weight = parameter(layer_, name + ".weight");
    return tensor_of({x_.size(0), x_.size(1), o_.heads, o_.head_width}, [&](const Shape& at) {
      double y = 0;
      for (std::int64_t d = 0; d < o_.width; ++d) {
        const double value = element(x_, {at[0], at[1], d});
        if (!is_expert(kind)) {
          y += value * element(weight, {at[2] * o_.head_width + at[3], d});
          continue;
        }
        for (std::int64_t e = 0; e < o_.experts; ++e)
          y += gate(name, at[0], at[1], at[2], e) * value * element(weight, {at[2] * o_.experts + e, d, at[3]});
      }
      return y;
    });
  }

  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v) {
    const Tensor output_gate = parameter(layer_, "output_gate");
    return tensor_of(q.shape(), [&](const Shape& at) {
      double total = 0, sum = 0;
      for (std::int64_t j = 0; j <= at[1]; ++j) {
        double logit = 0;
        for (std::int64_t c = 0; c < o_.head_width; ++c)
          logit += element(q, {at[0], at[1], at[2], c}) * element(k, {at[0], j, at[2], c});
        const double weight = std::exp(logit / std::sqrt(static_cast<double>(o_.head_width)));
        total += weight;
        sum += weight * element(v, {at[0], j, at[2], at[3]});
      }
      if (!output_gate.defined()) return sum / total;
      double score = 0;
      for (std::int64_t d = 0; d < o_.width; ++d)
        score += element(output_gate, {at[2], d}) * element(x_, {at[0], at[1], d});
      return sum / total / (1 + std::exp(-score));
    });
  }

  SwitchHead& layer_;
  SwitchHeadOptions o_;
  Tensor x_;
};

TEST(SwitchHead, equals_the_formula) {
  for (const SwitchHeadOptions& options : switch_combinations()) {
    if (options.position.kind != nn::PositionKind::none) continue;
    SwitchHead layer(options);
    layer.to(DType::f64);
    for (const Shape& shape : {Shape{2, 5, 6}, Shape{1, 1, 6}}) {
      const Tensor x = random_tensor(shape, 21);
      SCOPED_TRACE(describe(options));
      EXPECT_CLOSE(layer.forward(Variable(x)).output.data(), Naive(layer, x).out(), 1e-12);
    }
  }
}

TEST(SwitchHead, gradients_of_every_switch) {
  for (const SwitchHeadOptions& options : switch_combinations()) {
    SwitchHead layer(options);
    layer.to(DType::f64);
    Variables inputs = {Variable(random_tensor({2, 4, 6}, 33), true)};
    for (const Variable& p : layer.parameters()) inputs.push_back(p);
    const auto result = gradcheck(
        [&](const Variables& in) {
          const nn::LayerOutput out = layer.forward(in[0]);
          return out.regularizer.defined() ? out.output + out.regularizer : out.output;
        },
        inputs);
    EXPECT_TRUE(result) << describe(options) << ": " << result.message;
  }
}

TEST(SwitchHead, gradients_with_other_sources_and_masks) {
  for (const auto position : {nn::PositionKind::rope, nn::PositionKind::xl}) {
    SwitchHeadOptions options = small_options();
    options.position.kind = position;
    SwitchHead layer(options);
    layer.to(DType::f64);
    Variables inputs = {Variable(random_tensor({2, 3, 6}, 1), true), Variable(random_tensor({2, 5, 6}, 2), true),
                        Variable(random_tensor({2, 5, 6}, 3), true)};
    for (const Variable& p : layer.parameters()) inputs.push_back(p);
    Tensor mask = Tensor::zeros({3, 5}, DType::boolean), padding = Tensor::zeros({2, 5}, DType::boolean);
    mask.slice(0, 0, 1).slice(1, 2, 4).fill(1);
    padding.slice(0, 1, 2).slice(1, 4, 5).fill(1);
    for (const bool causal : {false, true}) {
      const auto result = gradcheck(
          [&](const Variables& in) {
            nn::AttentionArguments arguments;
            arguments.key_source = in[1];
            arguments.value_source = in[2];
            arguments.causal = causal;
            arguments.mask = mask;
            arguments.key_padding = padding;
            return layer.forward(in[0], arguments).output;
          },
          inputs);
      EXPECT_TRUE(result) << result.message;
    }
  }
}

TEST(SwitchHead, decoding_with_a_cache_gives_the_rows_of_the_whole) {
  const NoGradGuard no_grad;
  for (const SwitchHeadOptions& options : switch_combinations()) {
    SwitchHead layer(options);
    layer.to(DType::f64);
    layer.eval();
    const Tensor x = random_tensor({2, 7, 6}, 50);
    const Tensor whole = layer.forward(Variable(x)).output.data();
    for (const std::vector<std::int64_t>& split :
         {std::vector<std::int64_t>{7}, {1, 1, 1, 1, 1, 1, 1}, {3, 1, 2, 1}, {2, 5}}) {
      nn::KeyValueCache cache;
      nn::AttentionArguments arguments;
      arguments.cache = &cache;
      std::vector<Tensor> rows;
      std::int64_t begin = 0;
      for (const std::int64_t count : split) {
        const Tensor part = x.slice(1, begin, begin + count).contiguous();
        rows.push_back(layer.forward(Variable(part), arguments).output.data());
        begin += count;
      }
      SCOPED_TRACE(describe(options));
      EXPECT_CLOSE(ops::concat(rows, 1), whole, 1e-12);
    }
  }
}

TEST(SwitchHead, decoding_in_f32_gives_the_rows_of_the_whole) {
  const NoGradGuard no_grad;
  for (const SwitchHeadOptions& options : switch_combinations()) {
    if (options.experts > 1) continue;  // rounding could choose another expert
    SwitchHead layer(options);
    const Tensor x = random_tensor({2, 70, 6}, 52, DType::f32);
    nn::KeyValueCache cache;
    nn::AttentionArguments arguments;
    arguments.cache = &cache;
    std::vector<Tensor> rows;
    for (std::int64_t t = 0; t < x.size(1); ++t)
      rows.push_back(layer.forward(Variable(x.slice(1, t, t + 1).contiguous()), arguments).output.data());
    SCOPED_TRACE(describe(options));
    EXPECT_CLOSE(ops::concat(rows, 1), layer.forward(Variable(x)).output.data(), 1e-5);
  }
}

TEST(SwitchHead, a_past_in_the_key_source_gives_the_last_rows_of_the_whole) {
  for (const SwitchHeadOptions& options : switch_combinations()) {
    SwitchHead layer(options);
    layer.to(DType::f64);
    const Tensor x = random_tensor({2, 6, 6}, 51);
    const Tensor whole = layer.forward(Variable(x)).output.data();
    nn::AttentionArguments arguments;
    arguments.key_source = Variable(x);
    const Tensor last = layer.forward(Variable(x.slice(1, 4, 6).contiguous()), arguments).output.data();
    SCOPED_TRACE(describe(options));
    EXPECT_CLOSE(last, whole.slice(1, 4, 6), 1e-12);
  }
}

TEST(SwitchHead, inspection_shows_attention_and_selections) {
  SwitchHeadOptions options = small_options();
  options.experts_on = {P::query, P::value, P::output};
  SwitchHead layer(options);
  nn::AttentionInspection inspection;
  nn::AttentionArguments arguments;
  arguments.inspection = &inspection;
  layer.forward(Variable(random_tensor({2, 5, 6}, 3, DType::f32)), arguments);
  ASSERT_EQ(inspection.probabilities.shape(), Shape({2, 2, 5, 5}));
  for (std::int64_t i = 0; i < 5; ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < 5; ++j) sum += element(inspection.probabilities, {1, 1, i, j});
    EXPECT_NEAR(sum, 1, 1e-6);
    for (std::int64_t j = i + 1; j < 5; ++j) EXPECT_EQ(element(inspection.probabilities, {1, 1, i, j}), 0);
  }
  ASSERT_EQ(inspection.selections.size(), 3u);
  EXPECT_EQ(inspection.selections[0].projection, "query");
  EXPECT_EQ(inspection.selections[1].projection, "value");
  EXPECT_EQ(inspection.selections[2].projection, "output");
  EXPECT_EQ(inspection.selections[1].indices.shape(), Shape({2, 5, 2, 2}));
  EXPECT_EQ(inspection.selections[2].gates.shape(), Shape({2, 5, 2, 2}));
}

TEST(SwitchHead, shared_selection_means_one_router_and_equal_choices) {
  SwitchHeadOptions options = small_options();
  options.shared_selection = true;
  SwitchHead layer(options);
  EXPECT_TRUE(parameter(layer, "router.weight").defined());
  EXPECT_FALSE(parameter(layer, "value_router.weight").defined());
  nn::AttentionInspection inspection;
  nn::AttentionArguments arguments;
  arguments.inspection = &inspection;
  layer.forward(Variable(random_tensor({2, 5, 6}, 3, DType::f32)), arguments);
  EXPECT_EQ(inspection.selections[0].indices.to_vector<int>(), inspection.selections[1].indices.to_vector<int>());
}

TEST(SwitchHead, expert_dropout_acts_in_training_only) {
  SwitchHeadOptions options = small_options();
  options.expert_dropout = 0.5;
  SwitchHead layer(options);
  const Variable x(random_tensor({2, 5, 6}, 3, DType::f32));
  layer.eval();
  const auto first = layer.forward(x).output.data().to_vector<double>();
  EXPECT_EQ(layer.forward(x).output.data().to_vector<double>(), first);
  layer.train();
  EXPECT_NE(layer.forward(x).output.data().to_vector<double>(), first);
}

TEST(SwitchHead, parameters_have_the_documented_shapes) {
  SwitchHeadOptions options = small_options();
  options.position.kind = nn::PositionKind::xl;
  SwitchHead layer(options);
  EXPECT_EQ(parameter(layer, "query.weight").shape(), Shape({8, 6}));
  EXPECT_EQ(parameter(layer, "value.weight").shape(), Shape({6, 6, 4}));
  EXPECT_EQ(parameter(layer, "output.weight").shape(), Shape({6, 4, 6}));
  EXPECT_EQ(parameter(layer, "value_router.weight").shape(), Shape({6, 6}));
  EXPECT_EQ(parameter(layer, "position.projection.weight").shape(), Shape({8, 6}));
}

TEST(SwitchHead, refuses_what_cannot_be_built) {
  SwitchHeadOptions options = small_options();
  options.k = 4;
  EXPECT_ERROR(SwitchHead(options), "Router: k is 4, expected 1 to the 3 experts");
  options = small_options();
  options.selection = SelectionKind::sinkmoid;
  EXPECT_ERROR(SwitchHead(options), "SwitchHead: selection is sinkmoid, expected sigmoid or softmax");
  options = small_options();
  options.heads = 4;
  options.head_width = 0;
  EXPECT_ERROR(SwitchHead(options), "SwitchHead: head_width is 0, expected at least 1, or 0 with heads that divide");
  SwitchHead layer(small_options());
  EXPECT_ERROR(layer.forward(Variable(Tensor::zeros({2, 3, 5}))), "SwitchHead: x must be [B, T, 6], got [2, 3, 5]");
}

}  // namespace
}  // namespace switchyard::moe
