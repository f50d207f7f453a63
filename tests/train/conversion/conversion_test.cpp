#include "train/conversion/conversion.h"

#include <gtest/gtest.h>

#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>

#include "moe/conversion/convert.h"
#include "tests/support/errors.h"
#include "tests/train/conversion/tiny_conversion.h"
#include "train/checkpoint.h"

namespace switchyard::train {
namespace {

using testing::read_bytes;
namespace fs = std::filesystem;
namespace json = boost::json;

const auto kNever = [] { return false; };

/// A conversion that has gone through all its phases.
struct Converted : Conversion {
  Converted(const fs::path& folder, const ConversionConfig& config) : Conversion(folder, config, device(), kSilent) {
    EXPECT_TRUE(run(kNever));
  }
};

/// The mean of a number that each layer of some results has.
double mean_of(const json::value& results, const char* key) {
  const json::array& layers = results.at("layers").as_array();
  double sum = 0;
  for (const json::value& layer : layers) sum += layer.at(key).to_number<double>();
  return sum / static_cast<double>(layers.size());
}

class ConversionTest : public ::testing::Test {
 protected:
  const testing::TemporaryFolder folder_;
  const fs::path run_ = train_dense_run(folder_.path());
};

TEST_F(ConversionTest, PhasesDoWhatTheyAreFor) {
  const Converted conversion(folder_ / "out", tiny_conversion(run_));
  const json::object sparsity = conversion.results(PhaseKind::sparsify).value();
  EXPECT_GT(mean_of(sparsity.at("after"), "zero"), mean_of(sparsity.at("before"), "zero") + 0.1);
  EXPECT_LT(loss_of(sparsity.at("after")), loss_of(sparsity.at("before")) + 0.3);

  const json::object experts = conversion.results(PhaseKind::experts).value();
  EXPECT_NEAR(loss_of(experts), loss_of(sparsity.at("after")), 1e-4);

  const json::object routers = conversion.results(PhaseKind::routers).value();
  EXPECT_GT(mean_of(routers, "rank_correlation"), 0.4);  // by chance 0
  EXPECT_GT(mean_of(routers, "top_recall"), 0.5);        // by chance 0.25
}

/// Scores at the taus that adapt.taus lists, from phase adapt's results.
std::vector<double> losses(const json::object& adapted, const char* when) {
  std::vector<double> all;
  for (const json::value& score : adapted.at(when).as_array()) all.push_back(loss_of(score));
  return all;
}

// With its gates on, a model learns to do with few experts; the same steps with all experts running help much less.
TEST_F(ConversionTest, AnAdaptedModelNeedsFewerExperts) {
  ConversionConfig config = tiny_conversion(run_);
  config.phases = {PhaseKind::sparsify, PhaseKind::experts, PhaseKind::routers};
  config.sparsify.weight = 0;
  const Converted unadapted(folder_ / "converted", config);

  config.model = (folder_ / "converted").string();
  config.phases = {PhaseKind::adapt};
  config.adapt.steps = 60;
  config.adapt.optimizer.learning_rate = 0.005;
  config.adapt.taus = {0.1, 0.3};
  Converted adapted(folder_ / "adapted", config);
  const json::object results = adapted.results(PhaseKind::adapt).value();
  config.adapt.taus = {1};
  Converted trained_on(folder_ / "trained-on", config);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_LT(losses(results, "after")[i], losses(results, "before")[i] - 0.2);
    moe::set_gates(trained_on.task().model(), {moe::GateMode::dynk_max, 1, i == 0 ? 0.1 : 0.3});
    EXPECT_LT(losses(results, "after")[i], trained_on.task().evaluate().loss - 0.1);
  }
  const auto loaded = load_converted(folder_ / "adapted", {device()}, kSilent);
  moe::set_gates(loaded->model(), {moe::GateMode::dynk_max, 1, 0.1});
  EXPECT_EQ(loaded->evaluate().loss, losses(results, "after")[0]);
}

TEST_F(ConversionTest, RoutersOfMoeficationAreNotAdapted) {
  ConversionConfig config = tiny_conversion(run_);
  config.phases = {PhaseKind::experts, PhaseKind::routers};
  config.routers.kind = RouterKind::moefication;
  config.routers.steps = 2;
  const Converted moefication(folder_ / "moefication", config);
  config.model = (folder_ / "moefication").string();
  config.phases = {PhaseKind::adapt};
  config.routers.kind = RouterKind::norm;
  EXPECT_ERROR(Conversion(folder_ / "out", config, device(), kSilent),
               "adapt: the model's routers give scores by identity, expected abs as routers of kind norm do");
  config.phases = {PhaseKind::routers};
  EXPECT_ERROR(Conversion(folder_ / "out", config, device(), kSilent),
               "routers: the model's routers give scores by identity, expected abs as routers of kind norm do");
}

TEST_F(ConversionTest, WithoutAPenaltyActivationsStayAsTheyAre) {
  ConversionConfig config = tiny_conversion(run_);
  config.phases = {PhaseKind::sparsify};
  config.sparsify.weight = 0;
  const json::object sparsity = Converted(folder_ / "out", config).results(PhaseKind::sparsify).value();
  EXPECT_LT(mean_of(sparsity.at("after"), "zero"), mean_of(sparsity.at("before"), "zero") + 0.1);
}

TEST_F(ConversionTest, AConvertedModelIsLoadedAsItWas) {
  Converted conversion(folder_ / "out", tiny_conversion(run_));
  const auto loaded = load_converted(folder_ / "out", {device()}, kSilent);
  EXPECT_FALSE(loaded->model().training());
  for (const double tau : {0.0, 0.5, 1.0}) {
    moe::set_gates(conversion.task().model(), {moe::GateMode::dynk_max, 1, tau});
    moe::set_gates(loaded->model(), {moe::GateMode::dynk_max, 1, tau});
    EXPECT_EQ(loaded->evaluate().loss, conversion.task().evaluate().loss);
  }
  EXPECT_ERROR(moe::set_gates(loaded->model(), {moe::GateMode::dynk_max, 1, 1.5}),
               "gate dynk_max: tau is 1.5, expected 0 to 1");
}

// Two conversions, of which one goes on from the other's result, split one sparsified model in two ways.
TEST_F(ConversionTest, AConversionCanBeConverted) {
  ConversionConfig first = tiny_conversion(run_);
  first.phases = {PhaseKind::sparsify};
  Converted sparse(folder_ / "sparse", first);
  ConversionConfig second = tiny_conversion(folder_ / "sparse");
  second.phases = {PhaseKind::experts, PhaseKind::routers};
  for (const RouterKind kind : {RouterKind::norm, RouterKind::moefication}) {
    second.routers.kind = kind;
    const fs::path out = folder_ / names_of(kind)[static_cast<std::size_t>(kind)];
    const Converted conversion(out, second);
    EXPECT_GT(mean_of(conversion.results(PhaseKind::routers).value(), "rank_correlation"), 0.3);
    const auto loaded = open_task(out, {device()}, kSilent);
    EXPECT_NEAR(loaded->evaluate().loss, sparse.task().evaluate().loss, 1e-4);
    moe::set_gates(loaded->model(), {moe::GateMode::topk, 8});
    EXPECT_LT(loaded->evaluate().loss, sparse.task().evaluate().loss + 0.5);
  }
}

TEST_F(ConversionTest, GeluIsSwappedForRelu) {
  Config dense = RunFolder::read_config(run_);
  dense.model.feedforward.activation = ops::Activation::gelu;
  dense.output.name = "gelu";
  const RunFolder run = RunFolder::create(dense);
  train_run(run, dense);
  ConversionConfig config = tiny_conversion(run.path());
  config.phases = {PhaseKind::sparsify, PhaseKind::experts};
  const auto after = [&](const char* out) {
    return mean_of(Converted(folder_ / out, config).results(PhaseKind::sparsify)->at("after"), "zero");
  };
  EXPECT_LT(after("gelu"), 0.01);
  config.sparsify.swap_to_relu = true;
  EXPECT_GT(after("relu"), 0.3);
  const auto task = load_converted(folder_ / "relu", {}, kSilent);
  for (moe::DynamicFeedForward* layer : moe::converted_layers(task->model()))
    EXPECT_EQ(layer->activation(), ops::Activation::relu);
}

/// Runs a conversion to its end in one go, in folder / "whole", and again in folder / "stopped", where the i-th start
/// is told to stop when it has asked so often; expects the same files of both. Returns how many starts that took.
int expect_the_same_when_stopped(const fs::path& folder, const ConversionConfig& config,
                                 const std::function<int(int start)>& asked_before_stop) {
  const fs::path whole = folder / "whole", stopped = folder / "stopped";
  Converted(whole, config);
  int starts = 0;
  for (bool finished = false; !finished && starts < 20; ++starts) {
    int asked = 0;
    Conversion conversion(stopped, config, "", kSilent);
    finished = conversion.run([&] { return ++asked > asked_before_stop(starts); });
  }
  for (const PhaseKind kind : config.phases) {
    const std::string phase(name_of(kind));
    const auto a = list_checkpoints(whole / phase), b = list_checkpoints(stopped / phase);
    EXPECT_EQ(a.size(), 1u) << phase;
    EXPECT_EQ(b.size(), 1u) << phase;
    if (a.size() != 1 || b.size() != 1) return starts;
    EXPECT_EQ(a[0].first, b[0].first);
    for (const char* file : {"model.safetensors", "state.json"})
      EXPECT_TRUE(read_bytes(a[0].second / file) == read_bytes(b[0].second / file)) << phase << ' ' << file;
  }
  const auto lines = read_metrics(stopped / "metrics.jsonl"), expected = read_metrics(whole / "metrics.jsonl");
  EXPECT_EQ(lines.size(), expected.size());
  for (std::size_t i = 0; i < std::min(lines.size(), expected.size()); ++i)
    for (const char* key : {"step", "phase", "loss", "gradient_norm"})
      EXPECT_EQ(lines[i].contains(key) ? lines[i].at(key) : nullptr,
                expected[i].contains(key) ? expected[i].at(key) : nullptr)
          << "line " << i << ' ' << key;
  return starts;
}

TEST_F(ConversionTest, WithoutCheckpointsAPhaseThatIsStoppedStartsOver) {
  SKIP_ON_GPU("the order of sums is not fixed there");
  ConversionConfig config = tiny_conversion(run_);
  config.training.checkpoint_every = 0;
  EXPECT_GT(expect_the_same_when_stopped(folder_.path(), config, [](int start) { return 25 + 10 * start; }), 3);
}

// No start is long enough for a phase. A checkpoint of the routers lies amid a batch, and what the model remembers of
// its last segment is lost with a stop.
TEST_F(ConversionTest, APhaseGoesOnFromItsLastCheckpoint) {
  SKIP_ON_GPU("the order of sums is not fixed there");
  Config dense = RunFolder::read_config(run_);
  dense.model.position = moe::PositionKind::xl;
  dense.model.memory = 8;
  dense.data.mode = DataMode::contiguous;
  dense.output.name = "memory";
  const RunFolder run = RunFolder::create(dense);
  train_run(run, dense);
  ConversionConfig config = tiny_conversion(run.path());
  config.phases.insert(config.phases.begin(), PhaseKind::projections);
  config.projections.steps = 40;
  config.projections.expert_width = 2;
  config.phases.push_back(PhaseKind::adapt);
  config.adapt.steps = 40;
  config.training.checkpoint_every = 15;
  EXPECT_GT(expect_the_same_when_stopped(folder_.path(), config, [](int) { return 32; }), 5);
}

TEST_F(ConversionTest, PhasesCanBeAddedLater) {
  ConversionConfig config = tiny_conversion(run_);
  const std::vector<PhaseKind> all = config.phases;
  config.phases = {PhaseKind::sparsify};
  Converted(folder_ / "out", config);
  config.phases = all;
  const Converted conversion(folder_ / "out", config);
  EXPECT_TRUE(conversion.results(PhaseKind::routers).has_value());
  EXPECT_NE(conversion.summary().find("sparsify: validation loss"), std::string::npos);
}

TEST_F(ConversionTest, WhatDoesNotFitIsToldBeforeAnyWork) {
  const ConversionConfig good = tiny_conversion(run_);
  const auto message = [&](const ConversionConfig& config) {
    return testing::error_of([&] { Conversion(folder_ / "out", config, device(), kSilent); });
  };
  ConversionConfig config = good;
  config.experts.expert_width = 5;
  EXPECT_EQ(message(config), "convert: expert_width is 5, expected a divisor of the layer's 64 neurons");
  config = good;
  config.phases = {PhaseKind::routers};
  EXPECT_EQ(message(config), "routers: the model has no experts, expected phase experts before");
  config = good;
  config.model = (folder_ / "none").string();
  EXPECT_EQ(message(config), "run folder: " + config.model + ": is no folder");
  Config moe_model = tiny_config(folder_.path());
  const RunFolder run = RunFolder::create(moe_model);
  train_run(run, moe_model);
  config.model = run.path().string();
  EXPECT_EQ(message(config), "sparsify: the model has no dense feed-forward");
  config.phases = {PhaseKind::experts};
  EXPECT_EQ(message(config), "convert_feed_forwards: the feed-forward of layer 0 is not a dense one");
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(ConversionTest, AStartThatFailsLeavesNoFolder) {
  EXPECT_ERROR(Conversion(folder_ / "out", tiny_conversion(run_), "gpu", kSilent),
               "\"gpu\" is unknown, expected \"cpu\", \"cuda\" or \"cuda:<index>\"");
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(ConversionTest, AModelMayBeSpelledInTwoWays) {
  ConversionConfig config = tiny_conversion(run_);
  config.phases = {PhaseKind::experts};
  Converted(folder_ / "out", config);
  config.model = (run_ / ".." / run_.filename() / "").string();
  EXPECT_TRUE(Converted(folder_ / "out", config).results(PhaseKind::experts).has_value());
}

TEST_F(ConversionTest, AFolderInUseStaysAsItIs) {
  ConversionConfig config = tiny_conversion(run_);
  config.phases = {PhaseKind::experts};
  const Converted busy(folder_ / "out", config);
  const std::string before = read_bytes(folder_ / "out/config.json");
  config.sweep.map_share = 0.5;
  EXPECT_ERROR(Conversion(folder_ / "out", config, device(), kSilent), "is in use by process");
  EXPECT_TRUE(read_bytes(folder_ / "out/config.json") == before);
}

TEST_F(ConversionTest, AFolderOfSomethingElseIsRefused) {
  ConversionConfig config = tiny_conversion(run_);
  config.phases = {PhaseKind::experts};
  const fs::path out = folder_ / "out";
  EXPECT_ERROR(Conversion(run_, config, device(), kSilent),
               "holds something else, expected the folder of a conversion");
  EXPECT_ERROR(load_converted(run_, {}, kSilent), "holds something else, expected the folder of a conversion");
  Converted(out, config);
  config.experts.expert_width = 8;
  EXPECT_ERROR(Conversion(out, config, device(), kSilent), "was made with experts.expert_width 4, this run has 8");
  config = tiny_conversion(folder_ / "elsewhere");
  config.phases = {PhaseKind::experts};
  EXPECT_ERROR(Conversion(out, config, device(), kSilent), "was made with model ");
}

TEST_F(ConversionTest, AnotherArchitectureIsNamed) {
  ConversionConfig config = tiny_conversion(run_);
  config.phases = {PhaseKind::sparsify};
  Converted(folder_ / "out", config);
  Config wider = RunFolder::read_config(run_);
  wider.model.feedforward.width = 32;
  const RunFolder run = RunFolder::create(wider);
  train_run(run, wider);
  fs::remove_all(run_);
  fs::rename(run.path(), run_);
  EXPECT_ERROR(load_converted(folder_ / "out", {device()}, kSilent), "this model's is f32 [32, 16]");
}

// Folders may be renamed and moved after a conversion.
TEST_F(ConversionTest, AModelThatIsNotWhereItWasIsNamed) {
  ConversionConfig config = tiny_conversion(run_);
  config.phases = {PhaseKind::experts};
  const fs::path first = folder_ / "first", second = folder_ / "second";
  Converted(first, config);
  config.model = first.string();
  config.phases = {PhaseKind::routers};
  Converted(second, config);
  fs::rename(first, folder_ / "elsewhere");
  EXPECT_ERROR(load_converted(second, {device()}, kSilent), "conversion: " + second.string() + ": was made from " +
                                                                first.string() +
                                                                ", which is no folder, seen from the present one");
  fs::rename(second, first);
  EXPECT_ERROR(load_converted(first, {device()}, kSilent), "was made from itself, expected from a run");
}

TEST_F(ConversionTest, APhaseThatIsNotFinishedIsTold) {
  ConversionConfig config = tiny_conversion(run_);
  config.phases = {PhaseKind::experts};
  Converted(folder_ / "out", config);
  config.phases = {PhaseKind::experts, PhaseKind::routers};
  EXPECT_FALSE(Conversion(folder_ / "out", config, device(), kSilent).run([] { return true; }));
  std::string told;
  load_converted(folder_ / "out", {device()}, [&](const std::string& line) { told += line; });
  const std::string start = "conversion: " + (folder_ / "out").string() + ": ";
  EXPECT_EQ(told, start + "its phase routers is not finished; the model is as the one before has left it" + start +
                      "its routers are not trained; gates other than `all` choose experts by chance");
  EXPECT_TRUE(Conversion(folder_ / "out", config, device(), kSilent).run(kNever));
  told.clear();
  load_converted(folder_ / "out", {device()}, [&](const std::string& line) { told += line; });
  EXPECT_EQ(told, "");
}

TEST_F(ConversionTest, WithoutAFinishedPhaseThereIsNothingToLoad) {
  Conversion conversion(folder_ / "out", tiny_conversion(run_), device(), kSilent);
  EXPECT_FALSE(conversion.run([] { return true; }));
  EXPECT_ERROR(load_converted(folder_ / "out", {device()}, kSilent), "no phase of it is finished");
}

}  // namespace
}  // namespace switchyard::train
