// The trainer on a GPU: recorded steps against ordinary ones, what a step may not do, checkpoints across devices.

#include <functional>

#include "moe/statistics.h"
#include "tests/cuda/call_watch.h"
#include "tests/cuda/parity.h"
#include "tests/train/tiny_run.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;
namespace fs = std::filesystem;

Config gpu_config(const fs::path& folder) {
  Config config = tiny_config(folder);
  config.training.device = "cuda";
  config.training.steps = 100;
  config.training.log_every = 10;
  config.training.validate_every = 30;
  config.training.checkpoint_every = 40;
  return config;
}

/// What a run left behind that must not depend on how its steps were run.
struct Outcome {
  std::vector<boost::json::object> metrics;
  std::string model, optimizer, state;
};

Outcome train(const Config& config, bool graph) {
  const RunFolder run = RunFolder::create(config);
  const TokenizedText text = prepare_text(config, run.text_path(), [](const std::string&) {});
  Trainer trainer(run, config, text, nowhere());
  trainer.use_graph(graph);
  EXPECT_EQ(trainer.run(), Trainer::Outcome::finished);
  EXPECT_EQ(trainer.state().replaying(), graph);
  const fs::path end = checkpoint_of(run.path(), config.training.steps);
  return {read_metrics(run.metrics_path()), read_bytes(end / "model.safetensors"),
          read_bytes(end / "optimizer.safetensors"), read_bytes(end / "state.json")};
}

struct StepCase {
  const char* name;
  std::function<void(Config&)> change;
};

void PrintTo(const StepCase& given, std::ostream* out) { *out << given.name; }

class CudaStep : public ::testing::TestWithParam<StepCase> {};

TEST_P(CudaStep, ReplaysGiveTheBitsOfOrdinarySteps) {
  SKIP_WITHOUT_GPU();
  const TemporaryFolder folder;
  Config config = gpu_config(folder.path());
  GetParam().change(config);
  validate(config);
  const Outcome ordinary = train(config, false), replayed = train(config, true);
  EXPECT_TRUE(replayed.model == ordinary.model);
  EXPECT_TRUE(replayed.optimizer == ordinary.optimizer);
  EXPECT_EQ(replayed.state, ordinary.state);
  ASSERT_EQ(replayed.metrics.size(), ordinary.metrics.size());
  for (std::size_t i = 0; i < ordinary.metrics.size(); ++i)
    for (const char* key :
         {"step", "loss", "gradient_norm", "learning_rate", "expert_entropy", "dead_experts", "validation_loss"}) {
      ASSERT_EQ(replayed.metrics[i].contains(key), ordinary.metrics[i].contains(key));
      if (!ordinary.metrics[i].contains(key)) continue;
      EXPECT_EQ(replayed.metrics[i].at(key), ordinary.metrics[i].at(key)) << key << " of line " << i;
    }
  EXPECT_NE(ordinary.metrics[0].at("learning_rate"), ordinary.metrics[1].at("learning_rate"));
}

void contiguous_with_memory(Config& config) {
  config.data.mode = DataMode::contiguous;
  config.model.position = moe::PositionKind::xl;
  config.model.memory = 24;    // one and a half segments
  config.training.batch = 16;  // so that the text ends, and begins again, within the run
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaStep,
                         ::testing::Values(StepCase{"plain", [](Config&) {}},
                                           StepCase{"bf16", [](Config& c) { c.training.dtype = TrainingType::bf16; }},
                                           StepCase{"in_parts_of_unequal_weight",
                                                    [](Config& c) {
                                                      c.training.gradient_accumulation = 2;
                                                      c.data.respect_documents = true;
                                                    }},
                                           StepCase{"memory", contiguous_with_memory},
                                           StepCase{"memory_in_parts",
                                                    [](Config& c) {
                                                      contiguous_with_memory(c);
                                                      c.training.gradient_accumulation = 2;
                                                    }},
                                           StepCase{"recompute", [](Config& c) { c.training.recompute = true; }},
                                           StepCase{"without_clipping_and_dropout",
                                                    [](Config& c) {
                                                      c.training.clip = 0;
                                                      c.model.dropout = 0;
                                                    }},
                                           StepCase{"sgd",
                                                    [](Config& c) {
                                                      c.optimizer.kind = OptimizerKind::sgd;
                                                      c.optimizer.momentum = 0.9;
                                                    }}),
                         [](const auto& given) { return std::string(given.param.name); });

class CudaStepCalls : public ::testing::TestWithParam<StepCase> {};

TEST_P(CudaStepCalls, NeitherWaitForTheDeviceNorAskForMemory) {
  SKIP_WITHOUT_GPU();
  if (!CallWatch::kAvailable) GTEST_SKIP() << "a build without CUPTI";
  const TemporaryFolder folder;
  Config config = gpu_config(folder.path());
  GetParam().change(config);
  validate(config);
  constexpr int kSteps = 40;  // with memory the text is over after about 30: those that begin it are not replayed
  const TokenizedText text = prepare_text(config, folder / "tokens", [](const std::string&) {});
  for (const bool graph : {false, true}) {
    SCOPED_TRACE(graph ? "replayed" : "ordinary");
    TrainingState state(config, text);
    state.model().train();
    moe::collect_statistics(state.model(), moe::Collect::usage);
    state.use_graph(graph);
    for (int i = 0; i < kSteps; ++i) state.advance();
    state.take_records();
    const std::size_t reserved = memory_statistics(Device::cuda()).reserved_bytes;
    CallWatch watch;
    for (int i = 0; i < kSteps; ++i) state.advance();
    EXPECT_EQ(watch.waiting(), "");
    EXPECT_EQ(watch.allocating(), "");
    EXPECT_EQ(memory_statistics(Device::cuda()).reserved_bytes, reserved);
    state.take_records();
    EXPECT_NE(watch.waiting(), "") << "reading the records must wait, or the watch sees nothing";
  }
}

void bf16_in_parts(Config& config) {
  config.training.dtype = TrainingType::bf16;
  config.training.gradient_accumulation = 2;
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaStepCalls,
                         ::testing::Values(StepCase{"plain", [](Config&) {}}, StepCase{"bf16_in_parts", bf16_in_parts},
                                           StepCase{"bf16_in_parts_with_relative_positions",
                                                    [](Config& c) {
                                                      bf16_in_parts(c);
                                                      c.model.position = moe::PositionKind::xl;
                                                    }},
                                           StepCase{"bf16_in_parts_with_memory",
                                                    [](Config& c) {
                                                      bf16_in_parts(c);
                                                      contiguous_with_memory(c);
                                                    }}),
                         [](const auto& given) { return std::string(given.param.name); });

TEST(CudaStep, RestoringPutsAReplayedRunBack) {
  SKIP_WITHOUT_GPU();
  const TemporaryFolder folder;
  Config config = gpu_config(folder.path());
  contiguous_with_memory(config);
  const TokenizedText text = prepare_text(config, folder / "tokens", [](const std::string&) {});
  TrainingState state(config, text);
  state.model().train();
  const auto losses_of = [&](int steps) {
    for (int i = 0; i < steps; ++i) state.advance();
    std::vector<double> losses;
    for (const StepRecord& record : state.take_records()) losses.push_back(record.loss);
    return losses;
  };
  losses_of(10);
  save_checkpoint(folder / "checkpoints", state.snapshot(), 1);
  const auto first = losses_of(10);
  ASSERT_TRUE(state.replaying());
  state.restore(open_checkpoint(folder / "checkpoints" / checkpoint_name(10)));
  EXPECT_EQ(losses_of(10), first);
}

TEST(CudaStep, CheckpointsOfOneDeviceContinueOnTheOther) {
  SKIP_WITHOUT_GPU();
  for (const char* first : {"cpu", "cuda"}) {
    SCOPED_TRACE(first);
    const TemporaryFolder folder;
    Config config = tiny_config(folder.path());
    config.training.checkpoint_every = 6;
    config.training.device = first;
    const RunFolder whole = RunFolder::create(config);
    train_run(whole, config);
    fs::copy(whole.path(), folder / "continued", fs::copy_options::recursive);
    fs::remove_all(checkpoint_of(folder / "continued", 12));
    const RunFolder continued = RunFolder::open(folder / "continued");
    const std::string second = std::string(first) == "cpu" ? "cuda" : "cpu";
    train_run(continued, continued.config({"training.device=\"" + second + '"'}));
    const auto expected = read_metrics(whole.metrics_path()), lines = read_metrics(continued.metrics_path());
    ASSERT_EQ(lines.size(), expected.size());
    for (std::size_t i = 0; i < lines.size(); ++i) {
      if (!lines[i].contains("loss")) continue;
      EXPECT_NEAR(lines[i].at("loss").as_double(), expected[i].at("loss").as_double(), 1e-4) << "line " << i;
    }
  }
}

}  // namespace
}  // namespace switchyard::train
