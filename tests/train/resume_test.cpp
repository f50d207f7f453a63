#include <gtest/gtest.h>

#include <functional>

#include "tests/train/tiny_run.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;
namespace fs = std::filesystem;

struct ResumeCase {
  const char* name;
  std::function<void(Config&)> change;
};

void PrintTo(const ResumeCase& given, std::ostream* out) { *out << given.name; }

class Resume : public ::testing::TestWithParam<ResumeCase> {};

// Twelve steps in one go, against the same run with all that came after step 6 taken away and trained again.
TEST_P(Resume, GivesTheBitsOfAnUninterruptedRun) {
  const TemporaryFolder folder;
  Config config = tiny_config(folder.path());
  config.training.checkpoint_every = 6;
  GetParam().change(config);
  validate(config);
  fs::path whole, resumed = folder / "resumed";
  {
    const RunFolder run = RunFolder::create(config);
    whole = run.path();
    ASSERT_EQ(train_run(run, config), Trainer::Outcome::finished);
  }
  fs::copy(whole, resumed, fs::copy_options::recursive);
  fs::remove_all(checkpoint_of(resumed, 12));
  {
    const RunFolder run = RunFolder::open(resumed);
    ASSERT_EQ(train_run(run, run.config()), Trainer::Outcome::finished);
  }
  for (const char* file : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    const std::string expected = read_bytes(checkpoint_of(whole, 12) / file);
    EXPECT_FALSE(expected.empty());
    EXPECT_TRUE(read_bytes(checkpoint_of(resumed, 12) / file) == expected) << file;
  }
  const auto expected = read_metrics(whole / "metrics.jsonl"), lines = read_metrics(resumed / "metrics.jsonl");
  ASSERT_EQ(lines.size(), expected.size());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    for (const char* key : {"step", "loss", "gradient_norm", "learning_rate", "expert_entropy", "validation_loss"}) {
      ASSERT_EQ(expected[i].contains(key), lines[i].contains(key));
      if (!lines[i].contains(key)) continue;
      EXPECT_EQ(lines[i].at(key), expected[i].at(key)) << key << " of line " << i;
    }
  }
}

void contiguous_with_memory(Config& config) {
  config.data.mode = DataMode::contiguous;
  config.model.position = moe::PositionKind::xl;
  config.model.memory = 24;  // one and a half segments
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Resume,
    ::testing::Values(ResumeCase{"random", [](Config&) {}},
                      ResumeCase{"documents", [](Config& c) { c.data.respect_documents = true; }},
                      ResumeCase{"contiguous", [](Config& c) { c.data.mode = DataMode::contiguous; }},
                      ResumeCase{"memory", contiguous_with_memory},
                      ResumeCase{"memory_in_parts",
                                 [](Config& c) {
                                   contiguous_with_memory(c);
                                   c.training.gradient_accumulation = 2;
                                 }},
                      ResumeCase{"recompute", [](Config& c) { c.training.recompute = true; }},
                      ResumeCase{"bf16", [](Config& c) { c.training.dtype = TrainingType::bf16; }},
                      ResumeCase{"sgd",
                                 [](Config& c) {
                                   c.optimizer.kind = OptimizerKind::sgd;
                                   c.optimizer.momentum = 0.9;
                                 }},
                      ResumeCase{"validation_in_between", [](Config& c) { c.training.validate_every = 5; }}),
    [](const auto& given) { return std::string(given.param.name); });

TEST(Resuming, AFinishedRunGoesOnWithMoreSteps) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  const RunFolder run = RunFolder::create(config);
  train_run(run, config);
  const Config more = run.config({"training.steps=15"});
  EXPECT_EQ(train_run(run, more), Trainer::Outcome::finished);
  EXPECT_TRUE(fs::exists(checkpoint_of(run.path(), 15)));
  EXPECT_EQ(read_metrics(run.metrics_path()).back().at("step"), 15);
}

TEST(Resuming, DoesNotBeginAnewOverDamagedCheckpoints) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  const RunFolder run = RunFolder::create(config);
  train_run(run, config);
  for (const auto& [step, path] : list_checkpoints(run.checkpoints_path()))
    fs::resize_file(path / "model.safetensors", 1000);
  const std::string metrics = read_bytes(run.metrics_path());
  const std::size_t checkpoints = list_checkpoints(run.checkpoints_path()).size();
  EXPECT_ERROR(train_run(run, config), "all are damaged, expected a whole one to go on from");
  EXPECT_EQ(list_checkpoints(run.checkpoints_path()).size(), checkpoints);
  EXPECT_EQ(read_bytes(run.metrics_path()), metrics);
}

TEST(Resuming, KeepsItsTextWhenTheSourcesChange) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  const RunFolder run = RunFolder::create(config);
  train_run(run, config);
  fs::remove(folder / "text.txt");
  EXPECT_EQ(train_run(run, run.config({"training.steps=13"})), Trainer::Outcome::finished);
}

TEST(Resuming, PassesOverADamagedCheckpoint) {
  const TemporaryFolder folder;
  Config config = tiny_config(folder.path());
  config.training.checkpoint_every = 6;
  const RunFolder run = RunFolder::create(config);
  train_run(run, config);
  const fs::path model = checkpoint_of(run.path(), 12) / "model.safetensors";
  const std::string whole = read_bytes(model);
  std::string damaged = whole;
  damaged[damaged.size() / 2] ^= 1;
  write_bytes(model, damaged);
  EXPECT_EQ(train_run(run, config), Trainer::Outcome::finished);
  EXPECT_TRUE(read_bytes(model) == whole);  // made again from step 6
}

TEST(Resuming, KeysYoungerThanTheCheckpointHaveTheirDefaults) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  const TokenizedText text = prepare_text(config, folder / "text", [](const std::string&) {});
  TrainingState state(config, text);
  state.advance();
  Checkpoint checkpoint = state.snapshot();
  ASSERT_EQ(checkpoint.state["config"].at("model").as_object().erase("embedding_scale"), 1u);
  const fs::path saved = save_checkpoint(folder / "checkpoints", checkpoint, 1);
  TrainingState resumed(config, text);
  resumed.restore(open_checkpoint(saved));
  EXPECT_EQ(resumed.step(), 1);
}

TEST(Resuming, AnotherModelIsRefused) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  const RunFolder run = RunFolder::create(config);
  train_run(run, config);
  EXPECT_ERROR(train_run(run, run.config({"model.layers=3"})), "was made with model.layers 2, this run has 3");
  EXPECT_ERROR(train_run(run, run.config({"training.dtype=bf16"})), "this model's is bf16");
}

}  // namespace
}  // namespace switchyard::train
