#include "train/task_trainer.h"

#include <gtest/gtest.h>

#include "tests/train/tiny_classifier.h"
#include "train/checkpoint.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;
namespace fs = std::filesystem;

using MakeConfig = ClassifierConfig (*)(const fs::path&);

class ClassifierRun : public ::testing::TestWithParam<MakeConfig> {};

INSTANTIATE_TEST_SUITE_P(Kinds, ClassifierRun, ::testing::Values(&tiny_text_classifier, &tiny_image_classifier),
                         [](const auto& given) { return std::string(given.index == 0 ? "text" : "image"); });

TEST_P(ClassifierRun, Learns) {
  const TemporaryFolder folder;
  ClassifierConfig config = GetParam()(folder.path());
  config.training.steps = 80;
  const RunFolder run = tiny_classifier_run(config);
  const Score score = train_classifier(run, config);
  EXPECT_GT(score.accuracy.value(), 0.9);  // chance is a third or a quarter
  const auto lines = read_metrics(run.metrics_path());
  EXPECT_LT(lines.at(lines.size() - 2).at("loss").as_double(), 0.5 * lines.front().at("loss").as_double());
  EXPECT_EQ(lines.back().at("validation_accuracy").as_double(), *score.accuracy);
  EXPECT_EQ(lines.back().at("validation_loss").as_double(), score.loss);
}

// Twelve steps in one go, against the same run with all that came after step 6 taken away and trained again.
TEST_P(ClassifierRun, ContinuesToTheBitsOfAnUninterruptedOne) {
  const TemporaryFolder folder;
  const ClassifierConfig config = GetParam()(folder.path());
  fs::path whole, resumed = folder / "resumed";
  {
    const RunFolder run = tiny_classifier_run(config);
    whole = run.path();
    train_classifier(run, config);
  }
  fs::copy(whole, resumed, fs::copy_options::recursive);
  fs::remove_all(checkpoint_of(resumed, 12));
  const RunFolder run = RunFolder::open(resumed);
  train_classifier(run, load_config<ClassifierConfig>(run.config_path()));
  for (const char* file : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    const std::string expected = read_bytes(checkpoint_of(whole, 12) / file);
    EXPECT_FALSE(expected.empty());
    EXPECT_TRUE(read_bytes(checkpoint_of(resumed, 12) / file) == expected) << file;
  }
  const auto expected = read_metrics(whole / "metrics.jsonl"), lines = read_metrics(resumed / "metrics.jsonl");
  ASSERT_EQ(lines.size(), expected.size());
  for (std::size_t i = 0; i < lines.size(); ++i)
    for (const char* key : {"step", "loss", "gradient_norm", "validation_loss", "validation_accuracy"}) {
      if (!expected[i].contains(key)) continue;
      EXPECT_EQ(lines[i].at(key), expected[i].at(key)) << key << " of line " << i;
    }
}

TEST_P(ClassifierRun, OpensAsATask) {
  const TemporaryFolder folder;
  const ClassifierConfig config = GetParam()(folder.path());
  const RunFolder run = tiny_classifier_run(config);
  const Score trained = train_classifier(run, config);
  const auto task = open_task(run.path(), {.device = "", .batch = 3, .seed = 9}, [](const std::string&) {});
  const Score opened = task->evaluate();
  EXPECT_EQ(opened.accuracy, trained.accuracy);
  EXPECT_NEAR(opened.loss, trained.loss, 1e-5);  // summed in smaller batches
  EXPECT_EQ(task->layers(), 2);
  EXPECT_EQ(&task->block(1), &dynamic_cast<ClassificationTask&>(*task).block(1));
  EXPECT_EQ(task->tokens_per_batch() * 2, tiny_task(config, run)->tokens_per_batch());
}

TEST_P(ClassifierRun, RefusesAnotherModelAndOtherData) {
  const TemporaryFolder folder;
  const ClassifierConfig config = GetParam()(folder.path());
  const RunFolder run = tiny_classifier_run(config);
  train_classifier(run, config);
  ClassifierConfig wider = config;
  wider.model.layers = 3;
  EXPECT_ERROR(train_classifier(run, wider), "was made with model.layers 2, this run has 3");
  write_bytes(folder / "train.tsv", tiny_labelled_texts(3, 40));
  write_tiny_images(folder.path(), "train", 3, 40);
  EXPECT_ERROR(train_classifier(run, config), "examples: cannot resume: their checksum was");
}

TEST(TaskTrainer, ALossThatIsNotFiniteStopsTheRun) {
  const TemporaryFolder folder;
  ClassifierConfig config = tiny_image_classifier(folder.path());
  config.optimizer.kind = OptimizerKind::sgd;
  config.optimizer.learning_rate = 1000;
  config.training.clip = 0;
  const RunFolder run = tiny_classifier_run(config);
  EXPECT_ERROR(train_classifier(run, config), "a smaller learning rate may help");
}

}  // namespace
}  // namespace switchyard::train
