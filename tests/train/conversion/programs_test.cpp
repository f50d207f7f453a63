// convert and generate, run as a user runs them.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/train/conversion/tiny_conversion.h"
#include "tests/train/program.h"
#include "train/checkpoint.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

using testing::read_bytes;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

class ConvertProgram : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Program::exists("convert")) GTEST_SKIP() << "built without the examples";
    run_ = train_dense_run(folder_.path());
    ConversionConfig config = tiny_conversion("");
    config.sweep.dynk_max = {0.5};
    config.sweep.topk = {};
    config.sweep.measurement.repeats = 0;
    config_ = (folder_ / "conversion.json").string();
    testing::write_bytes(config_, pretty_json(to_json(config)));
  }
  std::vector<std::string> arguments(const std::string& out, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> all = {"--model", run_.string(), "--out", (folder_ / out).string(), "--config", config_};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  const testing::TemporaryFolder folder_;
  fs::path run_;
  std::string config_;
};

TEST_F(ConvertProgram, ConvertsAndTheModelWrites) {
  Program convert("convert", arguments("out"));
  ASSERT_EQ(convert.wait(), 0) << convert.err();
  EXPECT_EQ(convert.err(), "");
  for (const char* part : {"sparsify  step    80/80", "tok/s", "experts  layer 2/2  16 experts of 4 neurons",
                           "routers: rank correlation", "converted model: "})
    EXPECT_NE(convert.out().find(part), std::string::npos) << part << " is not in:\n" << convert.out();

  const std::string out = (folder_ / "out").string();
  const auto written = [&](const std::vector<std::string>& gate) {
    std::vector<std::string> all = {"--run", out, "--prompt", "line 7", "--tokens", "20"};
    all.insert(all.end(), gate.begin(), gate.end());
    Program generate("generate", all);
    generate.wait();
    return generate.out() + generate.err();
  };
  EXPECT_EQ(written({}).rfind("line 7", 0), 0u);
  EXPECT_EQ(written({"--tau", "0.5"}).rfind("line 7", 0), 0u);
  EXPECT_EQ(written({"--k", "3"}).rfind("line 7", 0), 0u);
  EXPECT_EQ(written({"--tau", "1"}), written({}));  // every expert runs
  EXPECT_EQ(written({"--tau", "1.5"}), "generate: gate dynk_max: tau is 1.5, expected 0 to 1\n");
  EXPECT_EQ(written({"--k", "17"}), "generate: gate topk: k is 17, expected 1 to the 16 experts\n");
}

TEST_F(ConvertProgram, AnInterruptLeavesWhatIsFinishedAndACheckpoint) {
  Program whole("convert", arguments("whole"));
  ASSERT_EQ(whole.wait(), 0) << whole.err();
  Program stopped("convert",
                  arguments("stopped", {"--set", "routers.steps=100000", "--set", "training.checkpoint_every=5"}));
  while (stopped.out().find("routers  step") == std::string::npos) std::this_thread::sleep_for(2ms);
  stopped.send(SIGINT);
  ASSERT_EQ(stopped.wait(), 0) << stopped.err();
  EXPECT_NE(stopped.out().find("stopped; started again with the same arguments"), std::string::npos) << stopped.out();
  for (const char* phase : {"sparsify", "experts"}) {
    const auto expected = list_checkpoints(folder_ / "whole" / phase),
               found = list_checkpoints(folder_ / "stopped" / phase);
    ASSERT_EQ(found.size(), 1u) << phase;
    if (default_device().is_cuda()) continue;  // the order of sums is not fixed there
    EXPECT_TRUE(read_bytes(found[0].second / "model.safetensors") ==
                read_bytes(expected[0].second / "model.safetensors"));
  }
  EXPECT_EQ(list_checkpoints(folder_ / "stopped" / "routers").size(), 1u);
}

TEST_F(ConvertProgram, MistakesEndInOneLine) {
  const auto error = [](const std::vector<std::string>& all) {
    Program convert("convert", all);
    EXPECT_EQ(convert.wait(), 1);
    return convert.err();
  };
  EXPECT_EQ(error({}), "convert: expected --config FILE (try configs/d2dmoe-gpt.json) or --help\n");
  EXPECT_EQ(error({"--config", config_}),
            "convert: expected --model RUN, the folder of a run such as train_lm makes\n");
  EXPECT_EQ(error({"--config", config_, "--model", "x"}), "convert: expected --out FOLDER for the converted model\n");
  EXPECT_EQ(error(arguments("out", {"--set", "experts.expert_width=7"})),
            "convert: convert: expert_width is 7, expected a divisor of the layer's 64 neurons\n");
  EXPECT_EQ(error(arguments("out", {"--set", "sweep.dynk_max=[2]"})).rfind("convert: config: sweep.dynk_max", 0), 0u);
}

}  // namespace
}  // namespace switchyard::train
