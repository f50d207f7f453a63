#include "train/conversion/sweep.h"

#include <gtest/gtest.h>

#include <boost/json/array.hpp>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "tests/support/close.h"
#include "tests/train/conversion/converted_task.h"
#include "tests/train/tiny_classifier.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;
using moe::Gate;
using moe::GateMode;

constexpr MeasurementOptions kNoTimes = {.repeats = 0};

void ignore(const std::string&) {}

double number(const json::value& object, const char* key) { return object.at(key).to_number<double>(); }

const json::array& points_of(const json::object& sweep, std::string_view method) {
  for (const json::value& curve : sweep.at("curves").as_array())
    if (curve.at("method").as_string() == method) return curve.at("points").as_array();
  fail("no curve of method ", method);
}

TEST(Measure, ADenseModelCostsItsMatrices) {
  DenseTask task;
  const Measurement dense = measure(*task, kNoTimes);
  EXPECT_EQ(dense.macs_per_token, 2 * (4 * 16 * 16 + 2 * 16 * 32));
  EXPECT_EQ(dense.share_of_dense(), 1);
  EXPECT_EQ(dense.score.loss, task->evaluate().loss);
  EXPECT_TRUE(dense.layers.empty());
  EXPECT_FALSE(dense.seconds_per_token || dense.seconds_per_decoded_token);
}

TEST(Measure, AllExpertsAreTheDenseModelAndCostMore) {
  for (const auto activation : {ops::Activation::relu, ops::Activation::gelu}) {
    DenseTask task(activation);
    const Measurement dense = measure(*task, kNoTimes);
    convert(*task);
    const Measurement all = measure(*task, kNoTimes);
    EXPECT_NEAR(all.score.loss, dense.score.loss, 1e-5);
    EXPECT_EQ(all.dense_macs_per_token, dense.dense_macs_per_token);
    EXPECT_GT(all.share_of_dense(), 1);  // routers, and adding the experts up
    ASSERT_EQ(all.layers.size(), 2u);
    EXPECT_EQ(all.layers[1].experts.mean_experts, 8);
    EXPECT_EQ(all.layers[1].experts.tokens, 8 * 16);
  }
}

/// A layer below `parent` by its path.
template <class Layer>
Layer& sublayer(nn::Module& parent, std::string_view path) {
  for (const auto& [name, module] : parent.named_modules())
    if (name == path) return dynamic_cast<Layer&>(*module);
  fail("no sublayer ", path);
}

/// Input of the first block's feed-forward for tokens [B, T], put together from its sublayers.
Variable first_feed_forward_input(LanguageModelTask& task, const Tensor& tokens) {
  nn::TransformerBlock& block = task.block(0);
  const Variable x = sublayer<nn::Embedding>(task.model(), "embedding").forward(tokens);
  const Variable normed = sublayer<nn::Norm>(block, "attention_norm").forward(x);
  return sublayer<nn::Norm>(block, "feed_forward_norm").forward(x + block.attention().forward(normed).output);
}

TEST(Measure, CountsAgreeWithANaiveLoop) {
  DenseTask task;
  const auto layers = convert(*task);
  const double tau = 0.6;
  for (moe::DynamicFeedForward* layer : layers) layer->set_gate({GateMode::dynk_max, 1, tau});
  const Measurement measured = measure(*task, kNoTimes);

  const NoGradGuard no_grad;
  task->model().eval();
  const Tensor windows = data::validation_windows(task->text().validation, 8, 16).inputs.to(default_device());
  const Variable rows = first_feed_forward_input(*task, windows);
  const auto scores = layers[0]->router().forward(rows).data().to_vector<float>();
  std::vector<double> histogram(9, 0);
  double runs = 0;
  for (std::size_t token = 0; token < 8 * 16; ++token) {
    const float* of_token = scores.data() + 8 * token;
    std::size_t count = 0;
    for (int e = 0; e < 8; ++e) count += of_token[e] >= (1 - tau) * *std::max_element(of_token, of_token + 8);
    ++histogram[count];
    runs += static_cast<double>(count);
  }
  EXPECT_EQ(measured.layers[0].experts.histogram, histogram);
  EXPECT_LT(histogram[8], 8 * 16);  // or it would prove little
  EXPECT_DOUBLE_EQ(measured.layers[0].experts.mean_experts, runs / 128);
  const double router = 16 * 8 + 8 * 8 + 4 * 8 + 1, bias = 16, expert = 2 * 16 * 4 + 4 + 16;
  EXPECT_DOUBLE_EQ(measured.layers[0].macs_per_token, router + bias + expert * runs / 128);
}

TEST(Measure, PassesRunTheModelOnValidationData) {
  DenseTask task;
  task->model().eval();
  const data::Batch batch = data::validation_windows(task->text().validation, 4, 16);
  const Tensor inputs = batch.inputs.to(default_device());
  const Pass pass = task->validation_pass();
  EXPECT_EQ(pass.tokens, 4 * 16);
  EXPECT_EQ(pass.run().item<float>(),
            task->model().loss(inputs, batch.targets.to(default_device())).cross_entropy.item<float>());
  const std::optional<Pass> decoding = task->decoding_pass(5);
  ASSERT_TRUE(decoding);
  EXPECT_EQ(decoding->tokens, 5);
  const Tensor start = inputs.slice(0, 0, 1).slice(1, 0, 5);
  EXPECT_CLOSE(decoding->run(), task->model().logits(start).data().slice(1, 4, 5), 1e-4);
  EXPECT_EQ(task->decoding_pass(1000)->tokens, 16);

  const Measurement timed = measure(*task, {.repeats = 3, .decoded_tokens = 5});
  EXPECT_GT(timed.seconds_per_token.value(), 0);
  EXPECT_GT(timed.seconds_per_decoded_token.value(), 0);
}

TEST(Measure, ClassifiersHaveAnAccuracyAndNoTimeOfDecoding) {
  const testing::TemporaryFolder folder;
  for (const ClassifierConfig& config : {tiny_text_classifier(folder.path()), tiny_image_classifier(folder.path())}) {
    const auto task = new_classification_task(config, folder.path(), ignore);
    moe::ConversionOptions options;
    options.expert_width = 4;
    moe::convert_feed_forwards({&task->block(0), &task->block(1)}, options);
    moe::set_gates(task->model(), {GateMode::dynk_max, 1, 0.5});
    const Measurement measured = measure(*task, {.repeats = 1});
    EXPECT_EQ(measured.score.accuracy, task->evaluate().accuracy);
    EXPECT_EQ(measured.layers.at(0).experts.tokens, static_cast<double>(measured.score.tokens));
    EXPECT_GT(measured.seconds_per_token.value(), 0);
    EXPECT_FALSE(measured.seconds_per_decoded_token);
  }
}

TEST(Sweep, CostRisesWithTauUpToAllExperts) {
  DenseTask task;
  const Measurement dense = measure(*task, kNoTimes);
  const auto layers = convert(*task);
  const Measurement all = measure(*task, kNoTimes);
  SweepConfig config;
  config.dynk = {0.3, 0.6, 1};
  config.measurement = kNoTimes;
  layers[1]->set_gate({GateMode::topk, 3});
  const json::object result = sweep(*task, config, dense, ignore);

  EXPECT_EQ(layers[0]->gate().mode, GateMode::all);  // put back
  EXPECT_EQ(layers[1]->gate().k, 3);
  EXPECT_EQ(number(result.at("dense"), "loss"), dense.score.loss);
  EXPECT_EQ(result.at("layers").as_array().size(), 2u);
  EXPECT_EQ(result.at("layers").at(1).at("name").as_string(), "layers.1.feed_forward");
  for (const char* method : {"dynk_max", "dynk", "topk"}) {
    const json::array& points = points_of(result, method);
    for (std::size_t i = 1; i < points.size(); ++i) {
      EXPECT_GE(number(points[i], "macs_per_token"), number(points[i - 1], "macs_per_token")) << method << " " << i;
      EXPECT_EQ(number(points[i], "share_of_dense"), number(points[i], "macs_per_token") / dense.macs_per_token);
    }
    EXPECT_LT(number(points.front(), "macs_per_token"), all.macs_per_token);
    EXPECT_EQ(number(points.back(), "macs_per_token"), all.macs_per_token) << method;
    EXPECT_NEAR(number(points.back(), "loss"), dense.score.loss, 1e-5);
  }
  const json::value& fourth = points_of(result, "topk").at(4);  // 0.4 of 8 experts
  EXPECT_EQ(number(fourth.at("layers").at(0), "mean_experts"), 3);
  EXPECT_EQ(fourth.at("layers").at(0).at("histogram").as_array().size(), 9u);
  EXPECT_EQ(parse_json(pretty_json(result), "sweep"), json::value(result));
}

TEST(Sweep, TausByLayerComeFromTheListAndCostMoreFromOneChoiceToTheNext) {
  DenseTask task;
  const Measurement dense = measure(*task, kNoTimes);
  convert(*task);
  SweepConfig config;
  config.dynk_max = {0.2, 0.5, 0.8, 1};
  config.topk = {};
  config.tau_by_layer = true;
  config.measurement = kNoTimes;
  const json::object result = sweep(*task, config, dense, ignore);
  EXPECT_EQ(result.at("curves").as_array().size(), 2u);
  const json::array& points = points_of(result, "dynk_max_by_layer");
  EXPECT_EQ(number(points.at(0), "value"), 0.2);  // the dearest price leaves nothing but the least tau
  for (std::size_t i = 0; i < points.size(); ++i) {
    for (const json::value& layer : points[i].at("layers").as_array())
      EXPECT_EQ(std::count(config.dynk_max.begin(), config.dynk_max.end(), number(layer, "value")), 1);
    if (i == 0) continue;
    EXPECT_GT(number(points[i], "macs_per_token"), number(points[i - 1], "macs_per_token"));
  }
}

TEST(Sweep, Errors) {
  DenseTask task;
  const Measurement dense = measure(*task, kNoTimes);
  EXPECT_ERROR(sweep(*task, {}, dense, ignore), "sweep: the model has no converted layers");
  SweepConfig config;
  Schema schema;
  describe_sweep(schema, config);
  const auto read = [&](const char* text) {
    schema.read({{"sweep", parse_json(text, "text")}});
    return config;
  };
  EXPECT_EQ(read(R"({"topk": [0.5, 1]})").topk, (std::vector<double>{0.5, 1}));
  EXPECT_TRUE(read(R"({"dynk_max": []})").dynk_max.empty());
  EXPECT_ERROR(read(R"({"dynk_max": [0.5, 1.5]})"), "config: sweep.dynk_max[1]: 1.5 is out of range, expected 0 to 1");
  EXPECT_ERROR(read(R"({"topk": 3})"), "config: sweep.topk: 3 is a number, expected a list of numbers");
}

}  // namespace
}  // namespace switchyard::train
