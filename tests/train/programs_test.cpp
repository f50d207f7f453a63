// The example programs, run as a user runs them.
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <thread>

#include "tests/train/program.h"
#include "tests/train/tiny_classifier.h"
#include "tests/train/tiny_run.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

class Programs : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Program::exists("train_lm")) GTEST_SKIP() << "built without the examples";
  }
  /// Writes a configuration file and returns its path.
  std::string config_file(const Config& config) {
    const fs::path path = folder_ / "tiny.json";
    write_bytes(path, pretty_json(to_json(config)));
    return path.string();
  }
  /// The first run in the output folder that can be continued; empty for none.
  fs::path run_in(const fs::path& output) {
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(output, none))
      if (fs::exists(entry.path() / "config.json")) return entry.path();
    return {};
  }
  void expect_same_end(const fs::path& a, const fs::path& b, std::int64_t step) {
    for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
      const std::string expected = read_bytes(checkpoint_of(a, step) / file);
      EXPECT_FALSE(expected.empty());
      EXPECT_TRUE(read_bytes(checkpoint_of(b, step) / file) == expected) << file;
    }
    const auto expected = read_metrics(a / "metrics.jsonl"), lines = read_metrics(b / "metrics.jsonl");
    ASSERT_EQ(lines.size(), expected.size());
    for (std::size_t i = 0; i < lines.size(); ++i) EXPECT_EQ(lines[i].at("step"), expected[i].at("step"));
  }

  TemporaryFolder folder_;
};

TEST_F(Programs, TrainValidateWriteAndNameWhatComesNext) {
  const Config config = tiny_config(folder_.path());
  const std::string device = text_of(default_device());
  std::vector<std::string> arguments = {"--config", config_file(config), "--device", device};
  if (!default_device().is_cuda()) arguments.insert(arguments.end(), {"--profile", "4"});  // which needs CUPTI on a GPU
  Program train("train_lm", arguments);
  ASSERT_EQ(train.wait(), 0) << train.err();
  const std::string out = train.out(), run = run_in(config.output.folder).string();
  std::vector<std::string> parts = {"step 12/12",
                                    "bits/byte",
                                    "tok/s",
                                    "expert entropy",
                                    "validation: ",
                                    "bits per byte",
                                    "run folder: " + run,
                                    "generate --run " + run,
                                    "--resume " + run};
  if (!default_device().is_cuda()) parts.insert(parts.end(), {"GFLOP/s", "matrix products (GEMM) take"});
  for (const std::string& part : parts) EXPECT_NE(out.find(part), std::string::npos) << part << " is not in:\n" << out;
  EXPECT_EQ(train.err(), "");

  Program generate("generate", {"--run", run, "--prompt", "line 7", "--tokens", "20", "--device", device});
  ASSERT_EQ(generate.wait(), 0) << generate.err();
  EXPECT_EQ(generate.out().rfind("line 7", 0), 0u);
  EXPECT_GT(generate.out().size(), 20u);
}

TEST_F(Programs, ARefusedChangeLeavesTheRunAsItWas) {
  const Config config = tiny_config(folder_.path());
  Program first("train_lm", {"--config", config_file(config)});
  ASSERT_EQ(first.wait(), 0) << first.err();
  const std::string run = run_in(config.output.folder).string();
  Program refused("train_lm", {"--resume", run, "--set", "model.layers=3"});
  EXPECT_EQ(refused.wait(), 1);
  EXPECT_EQ(refused.err(), "train_lm: checkpoint: " + checkpoint_of(run, 12).string() +
                               ": was made with model.layers 2, this run has 3\n");
  Program again("train_lm", {"--resume", run, "--set", "training.steps=14"});
  EXPECT_EQ(again.wait(), 0) << again.err();
  EXPECT_TRUE(fs::exists(checkpoint_of(run, 14)));
}

TEST_F(Programs, AClassifierTrainsAndGoesOn) {
  const ClassifierConfig config = tiny_image_classifier(folder_.path());
  const fs::path file = folder_ / "tiny.json";
  write_bytes(file, pretty_json(to_json(config)));
  Program train("train_classifier", {"--config", file.string()});
  ASSERT_EQ(train.wait(), 0) << train.err();
  const std::string out = train.out(), run = run_in(config.output.folder).string();
  for (const std::string& part :
       {std::string("images: 40 to train on, 20 to validate on, 4 classes"), std::string("step 12/12"),
        std::string("tok/s"), std::string("validation: accuracy "), "run folder: " + run})
    EXPECT_NE(out.find(part), std::string::npos) << part << " is not in:\n" << out;
  EXPECT_EQ(out.find("bits/byte"), std::string::npos) << out;

  Program refused("train_classifier", {"--resume", run, "--set", "data.most_shift=0"});
  EXPECT_EQ(refused.wait(), 1);
  EXPECT_EQ(refused.err(), "train_classifier: checkpoint: " + checkpoint_of(run, 12).string() +
                               ": was made with data.most_shift 1, this run has 0\n");
  Program more("train_classifier", {"--resume", run, "--set", "training.steps=14"});
  ASSERT_EQ(more.wait(), 0) << more.err();
  EXPECT_NE(more.out().find("continuing after step 12"), std::string::npos) << more.out();
  EXPECT_TRUE(fs::exists(checkpoint_of(run, 14)));
}

TEST_F(Programs, AUsersOwnLoopTrains) {
  SKIP_ON_GPU("the loop is written for the CPU");
  tiny_config(folder_.path());
  Program loop("from_scratch", {(folder_ / "text.txt").string()}, {"STEPS=20"});
  ASSERT_EQ(loop.wait(), 0) << loop.err();
  EXPECT_NE(loop.out().find("step 20  loss "), std::string::npos) << loop.out();
}

TEST_F(Programs, InterruptsSaveAndLeaveCleanly) {
  Config config = tiny_config(folder_.path());
  config.optimizer.schedule.kind = ScheduleKind::constant;  // so that the number of steps can change
  for (const int signal : {SIGINT, SIGTERM}) {
    config.output.folder = (folder_ / ("signal-" + std::to_string(signal))).string();
    config.training.steps = 1'000'000;
    Program stopped("train_lm", {"--config", config_file(config)});
    while (stopped.out().find("step  ") == std::string::npos) std::this_thread::sleep_for(2ms);
    stopped.send(signal);
    ASSERT_EQ(stopped.wait(), 0) << stopped.err();
    const fs::path run = run_in(config.output.folder);
    EXPECT_NE(stopped.out().find("stopped and saved at step "), std::string::npos) << stopped.out();
    EXPECT_NE(stopped.out().find("--resume " + run.string()), std::string::npos) << stopped.out();
    const auto checkpoints = list_checkpoints(run / "checkpoints");
    ASSERT_FALSE(checkpoints.empty());

    config.training.steps = checkpoints.back().first + 5;
    const std::string steps = "training.steps=" + std::to_string(config.training.steps);
    Program more("train_lm", {"--resume", run.string(), "--set", steps});
    ASSERT_EQ(more.wait(), 0) << more.err();
    config.output.folder += "-whole";
    Program whole("train_lm", {"--config", config_file(config)});
    ASSERT_EQ(whole.wait(), 0) << whole.err();
    expect_same_end(run_in(config.output.folder), run, config.training.steps);
  }
}

TEST_F(Programs, KilledAtRandomMomentsEndsAsIfNothingHadHappened) {
  SKIP_ON_GPU("a program takes longer to start there than to train");
  Config config = tiny_config(folder_.path());
  config.training.steps = 300;
  config.training.log_every = 25;
  config.training.checkpoint_every = 7;
  config.training.keep_checkpoints = 2;
  const auto start = std::chrono::steady_clock::now();
  Program whole("train_lm", {"--config", config_file(config)});
  ASSERT_EQ(whole.wait(), 0) << whole.err();
  const std::chrono::duration<double> duration = std::chrono::steady_clock::now() - start;
  const fs::path expected = run_in(config.output.folder);

  std::mt19937 random(1);
  std::string file;
  int killed = 0;
  // On a machine whose load changes a run may end before the first signal; then another begins, and is given less time.
  for (double longest = duration.count() / 6; killed == 0; longest /= 8) {
    config.output.folder = (folder_ / ("killed-within-" + std::to_string(longest))).string();
    file = config_file(config);
    std::uniform_real_distribution<double> moment(0, longest);
    for (int attempt = 0; attempt < 20; ++attempt) {
      const fs::path run = run_in(config.output.folder);
      Program program("train_lm", run.empty() ? std::vector<std::string>{"--config", file}
                                              : std::vector<std::string>{"--resume", run.string()});
      std::this_thread::sleep_for(std::chrono::duration<double>(moment(random)));
      program.send(SIGKILL);
      killed += program.wait() == -SIGKILL;
      EXPECT_EQ(program.err(), "");
    }
  }
  const fs::path run = run_in(config.output.folder);
  Program last("train_lm", run.empty() ? std::vector<std::string>{"--config", file}
                                       : std::vector<std::string>{"--resume", run.string()});
  ASSERT_EQ(last.wait(), 0) << last.err();
  expect_same_end(expected, run_in(config.output.folder), 300);
}

TEST_F(Programs, WrongCommandLinesEndInOneLine) {
  SKIP_ON_GPU("what is wrong with them does not depend on the device");
  const Config config = tiny_config(folder_.path());
  const std::string file = config_file(config), missing = (folder_ / "missing").string();
  write_bytes(folder_ / "bad.json", "{\"model\": {\"layers\": \"four\"}}");
  const std::string bad = (folder_ / "bad.json").string();
  const std::string classifier = SWITCHYARD_SOURCE_DIR "/configs/mnist10k-vit.json";
  write_bytes(folder_ / "binary", std::string("a\0b", 3));
  struct Row {
    std::string program;
    std::vector<std::string> arguments;
    std::string message;
  };
  const std::vector<Row> rows = {
      {"train_lm", {}, "expected --config FILE (try configs/demo.json), --resume RUN or --help"},
      {"train_lm", {"--confg", file}, "unrecognised option '--confg'"},
      {"train_lm", {"--conf", file}, "unrecognised option '--conf'"},
      {"train_lm", {file}, '"' + file + "\" belongs to no option; --help lists them"},
      {"train_lm", {"--config"}, "the required argument for option '--config' is missing"},
      {"train_lm", {"--config", file, "--config", file}, "option '--config' cannot be specified more than once"},
      {"train_lm", {"--config", missing}, "config: " + missing + ": cannot be opened: No such file or directory"},
      {"train_lm",
       {"--config", folder_.path().string()},
       "config: " + folder_.path().string() + ": is a folder, expected a JSON file"},
      {"train_lm", {"--config", classifier}, classifier + ": is for train_classifier, not for train_lm"},
      {"train_classifier", {"--config", file}, file + ": is for train_lm, not for train_classifier"},
      {"convert", {"--config", file, "--validate-config"}, file + ": is for train_lm, not for convert"},
      {"train_lm", {"--config", bad}, "config: model.layers: \"four\" is a string, expected an integer from 1 to 1024"},
      {"train_lm",
       {"--config", file, "--set", "model.layers"},
       "config: --set \"model.layers\": expected <key>=<value>, such as model.layers=4"},
      {"train_lm",
       {"--config", file, "--set", "training.batch=-1"},
       "config: training.batch: -1 is out of range, expected 1 to 1048576"},
      {"train_lm",
       {"--config", file, "--device", "tpu"},
       "config: training.device: \"tpu\" is unknown, expected \"cpu\", \"cuda\" or \"cuda:<index>\""},
      {"train_lm",
       {"--config", file, "--device", "cpu\", \"x"},
       R"(config: training.device: "\"cpu\", \"x\"" is unknown, expected "cpu", "cuda" or "cuda:<index>")"},
      {"train_lm", {"--config", file, "--data", missing}, "open: " + missing + ": No such file or directory"},
      {"train_lm",
       {"--config", file, "--data", (folder_ / "binary").string()},
       "corpus: " + (folder_ / "binary").string() + " is not a text file (it holds zero bytes)"},
      {"train_lm", {"--config", file, "--data"}, "the required argument for option '--data' is missing"},
      {"train_lm",
       {"--config", file, "--resume", missing},
       "--config and --resume exclude each other: a run goes on with its own configuration"},
      {"train_lm",
       {"--resume", missing, "--data", file},
       "--data and --resume exclude each other: a run keeps its text"},
      {"train_lm", {"--resume", missing}, "run folder: " + missing + ": is no folder"},
      {"train_lm",
       {"--resume", folder_.path().string()},
       "run folder: " + folder_.path().string() + ": has no config.json, expected the folder of a run"},
      {"train_lm", {"--config", file, "--profile", "many"}, "the argument ('many') for option '--profile' is invalid"},
      {"train_lm",
       {"--config", file, "--cuda-graph", "maybe"},
       "--cuda-graph: \"maybe\" is unknown, expected auto, on or off"},
      {"train_lm",
       {"--config", file, "--cuda-graph", "on"},
       "--cuda-graph on: the run trains on cpu, which records no graphs; expected --device cuda"},
      {"train_lm", {"--config", file, "--profile", "0"}, "--profile: 0 is out of range, expected 1 or more"},
      {"train_lm", {"--config", file, "--profile", "-1"}, "--profile: -1 is out of range, expected 1 or more"},
      {"train_lm",
       {"--config", file, "--validate-config", "--set", "model.widht=3"},
       "config: model.widht: unknown key (with value 3), did you mean model.width? Expected kind, vocabulary_size, "
       "width, layers, context, memory, dropout, norm, norm_epsilon, position, rope_fraction, rope_base, "
       "embedding_scale, tie_embeddings, head_bias, init, init_scale, embedding_init_std, attention or feedforward"},
      {"train_lm",
       {"--config", file, "--set", "data.tokenizer.kind=transformers", "--set", "data.tokenizer.model=" + bad},
       "tokenizer: " + bad + R"(: model.type: "" has no counterpart here, expected "WordPiece" or "BPE")"},
      {"generate", {}, "expected --run FOLDER, such as one that train_lm made"},
      {"generate", {"--run", missing}, "run folder: " + missing + ": is no folder"},
      {"generate", {"--run", missing, "--tokens", "x"}, "the argument ('x') for option '--tokens' is invalid"},
      {"generate", {"--run", missing, "--tokens", "-2"}, "--tokens: -2 is out of range, expected 0 or more"},
      {"generate", {"--run", missing, "--top-k", "-1"}, "--top-k: -1 is out of range, expected 0 or more"},
      {"generate", {"--run", missing, "--k", "0"}, "--k: 0 is out of range, expected 1 or more"},
      {"generate", {"--run", missing, "--seed", "-1"}, "--seed: -1 is out of range, expected 0 or more"},
      {"generate", {"--run", missing, "--seed=-1"}, "--seed: -1 is out of range, expected 0 or more"},
      {"generate",
       {"--run", missing, "--seed", "18446744073709551615"},
       "the argument ('18446744073709551615') for option '--seed' is invalid"},
      {"import_model",
       {"--out", missing},
       "expected --from FOLDER, a model as transformers' save_pretrained() writes it"},
      {"import_model",
       {"--from", missing, "--out", missing},
       "import: " + missing + ": is no folder, expected one with config.json and model.safetensors"},
      {"from_scratch", {missing}, "open: " + missing + ": No such file or directory"},
  };
  for (const Row& row : rows) {
    Program program(row.program, row.arguments);
    std::string line = row.program;
    for (const std::string& argument : row.arguments) line += ' ' + argument;
    SCOPED_TRACE(line);
    EXPECT_EQ(program.wait(), 1);
    EXPECT_EQ(program.err(), row.program + ": " + row.message + "\n");
  }
  EXPECT_TRUE(run_in(config.output.folder).empty()) << "a failed start leaves no run behind";
}

TEST_F(Programs, AGpuThatIsNotThereIsToldBeforeAnythingElse) {
  const std::string file = config_file(tiny_config(folder_.path()));
  const std::string classifier = (folder_ / "classifier.json").string();
  write_bytes(classifier, pretty_json(to_json(tiny_text_classifier(folder_.path()))));
  for (const auto& [name, config] : {std::pair("train_lm", file), std::pair("train_classifier", classifier)}) {
    Program program(name, {"--config", config, "--device", "cuda"}, {"CUDA_VISIBLE_DEVICES="});
    EXPECT_EQ(program.wait(), 1);
    EXPECT_EQ(program.out(), "");
    EXPECT_TRUE(program.err().starts_with(std::string(name) + ": cuda: ")) << program.err();
    EXPECT_EQ(std::ranges::count(program.err(), '\n'), 1);
  }
}

TEST_F(Programs, HelpAndConfigurationArePrinted) {
  const std::string file = config_file(tiny_config(folder_.path()));
  Program help("train_lm", {"--help"}), keys("train_lm", {"--help-config"}),
      config("train_lm", {"--config", file, "--validate-config", "--set", "model.layers=7"});
  EXPECT_EQ(help.wait(), 0);
  EXPECT_NE(help.out().find("--resume"), std::string::npos);
  EXPECT_EQ(keys.wait(), 0);
  EXPECT_EQ(keys.out(), config_help<Config>());
  EXPECT_EQ(config.wait(), 0);
  EXPECT_EQ(parse_config<Config>(config.out(), "--validate-config").model.layers, 7);
}

}  // namespace
}  // namespace switchyard::train
