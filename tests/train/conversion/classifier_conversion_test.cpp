// Conversions of classifiers: the phases know them only as tasks.
#include <gtest/gtest.h>

#include "moe/conversion/convert.h"
#include "tests/train/tiny_classifier.h"
#include "train/conversion/conversion.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;
namespace fs = std::filesystem;

const auto kSilent = [](const std::string&) {};
const auto kNever = [] { return false; };

using MakeConfig = ClassifierConfig (*)(const fs::path&);

class ClassifierConversion : public ::testing::TestWithParam<MakeConfig> {
 protected:
  ClassifierConversion() {
    ClassifierConfig config = GetParam()(folder_.path());
    config.training.steps = 80;
    const RunFolder run = tiny_classifier_run(config);
    trained_ = train_classifier(run, config);
    conversion_.model = run.path().string();
    conversion_.sparsify.steps = 40;
    conversion_.experts.expert_width = 4;
    conversion_.routers.steps = 40;
    conversion_.routers.hidden = 16;
    conversion_.routers.optimizer.learning_rate = 0.01;
  }

  TemporaryFolder folder_;
  Score trained_;
  ConversionConfig conversion_;
};

INSTANTIATE_TEST_SUITE_P(Kinds, ClassifierConversion, ::testing::Values(&tiny_text_classifier, &tiny_image_classifier),
                         [](const auto& given) { return std::string(given.index == 0 ? "text" : "image"); });

TEST_P(ClassifierConversion, ExpertsAltogetherAreTheClassifier) {
  conversion_.phases = {PhaseKind::experts};
  Conversion conversion(folder_ / "out", conversion_, "", kSilent);
  ASSERT_TRUE(conversion.run(kNever));
  const Score score = conversion.task().evaluate();
  EXPECT_NEAR(score.loss, trained_.loss, 1e-5);
  EXPECT_EQ(score.accuracy, trained_.accuracy);
  EXPECT_EQ(moe::converted_layers(conversion.task().model()).size(), 2u);
}

TEST_P(ClassifierConversion, GoesThroughAllPhasesAndIsOpenedAgain) {
  Conversion conversion(folder_ / "out", conversion_, "", kSilent);
  ASSERT_TRUE(conversion.run(kNever));
  const auto opened = open_task(folder_ / "out", {}, kSilent);
  for (const double tau : {0.2, 1.0}) {
    moe::set_gates(conversion.task().model(), {moe::GateMode::dynk_max, 1, tau});
    moe::set_gates(opened->model(), {moe::GateMode::dynk_max, 1, tau});
    EXPECT_EQ(opened->evaluate().loss, conversion.task().evaluate().loss);
  }
  EXPECT_GT(opened->evaluate().accuracy.value(), 0.8);  // all experts run at tau = 1
}

}  // namespace
}  // namespace switchyard::train
