#include "train/trainer.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "autograd/grad_mode.h"
#include "core/storage.h"
#include "tests/support/close.h"
#include "tests/train/tiny_run.h"
#include "train/sample.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;

TokenizedText text_of(const Config& config, const TemporaryFolder& folder) {
  return prepare_text(config, folder / "tokens", [](const std::string&) {});
}

/// For long tests of tiny models: where others use the machine, waiting for a second thread takes most of the time.
class OneThread {
 public:
  OneThread() : threads_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(threads_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int threads_;
};

TEST(Trainer, LearnsAndLeavesARecord) {
  const OneThread one_thread;
  const TemporaryFolder folder;
  Config config = tiny_config(folder.path());
  config.training.steps = 120;
  config.training.log_every = 10;
  config.training.validate_every = 60;
  config.training.checkpoint_every = 30;
  config.training.keep_checkpoints = 2;
  const RunFolder run = RunFolder::create(config);
  ASSERT_EQ(train_run(run, config), Trainer::Outcome::finished);
  const auto lines = read_metrics(run.metrics_path());
  ASSERT_EQ(lines.size(), 14u);  // 12 of training, 2 of validation
  EXPECT_GT(lines.front().at("bits_per_byte").as_double(), 5);
  EXPECT_LT(lines.back().at("validation_bits_per_byte").as_double(), 4.5);
  for (const char* key :
       {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "expert_entropy", "dead_experts", "peak_bytes"})
    EXPECT_TRUE(lines.front().contains(key)) << key;
  const auto checkpoints = list_checkpoints(run.checkpoints_path());
  ASSERT_EQ(checkpoints.size(), 2u);
  EXPECT_EQ(checkpoints[0].first, 90);
  EXPECT_EQ(checkpoints[1].first, 120);
}

TEST(Trainer, NamesAParameterThatIsNotFiniteFromTheStart) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  const RunFolder run = RunFolder::create(config);
  const TokenizedText text = text_of(config, folder);
  Trainer trainer(run, config, text, nowhere());
  trainer.model().named_parameters()[3].variable.data().fill(std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(error_of([&] { trainer.run(); }), "training: step 0: parameter " +
                                                  trainer.model().named_parameters()[3].name +
                                                  " is not finite; no checkpoint was written yet");
}

TEST(Trainer, NamesAParameterThatBrokeAfterTheLastCheckpoint) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  const RunFolder run = RunFolder::create(config);
  train_run(run, config);
  const Config more = run.config({"training.steps=20"});
  const TokenizedText text = text_of(config, folder);
  Trainer trainer(run, more, text, nowhere());
  const nn::NamedParameter broken = trainer.model().named_parameters()[0];
  broken.variable.data().fill(std::numeric_limits<double>::infinity());
  const std::string message = error_of([&] { trainer.run(); });
  EXPECT_EQ(message.rfind("training: step 13: the loss is nan; ", 0), 0u) << message;
  EXPECT_NE(message.find("repeated from the checkpoint it is finite, yet parameter " + broken.name + " was not"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("; last good checkpoint: " + checkpoint_of(run.path(), 12).string()), std::string::npos)
      << message;
}

TEST(Trainer, NamesStepModuleAndCheckpointOfALossThatIsNotFinite) {
  const TemporaryFolder folder;
  Config config = tiny_config(folder.path());
  config.optimizer.kind = OptimizerKind::sgd;
  config.optimizer.learning_rate = 1000;  // with momentum the weights overflow within some steps
  config.optimizer.momentum = 0.9;
  config.optimizer.weight_decay = 10;
  config.optimizer.schedule.kind = ScheduleKind::constant;
  config.optimizer.schedule.warmup_steps = 0;
  config.training.clip = 0;
  config.training.steps = 200;
  config.training.log_every = 50;  // so it is noticed long after it happened
  const RunFolder run = RunFolder::create(config);
  const std::string message = error_of([&] { train_run(run, config); });
  SCOPED_TRACE(message);
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(message.rfind("training: step ", 0), 0u);
  EXPECT_LT(std::stoi(message.substr(15)), 50);
  EXPECT_NE(message.find("anomaly: "), std::string::npos);
  EXPECT_NE(message.find("layers."), std::string::npos);
  EXPECT_NE(message.find("; last good checkpoint: " + checkpoint_of(run.path(), 0).string()), std::string::npos);
}

TEST(Trainer, MemoryDoesNotGrow) {
  const OneThread one_thread;
  const TemporaryFolder folder;
  for (const bool with_memory : {false, true}) {
    Config config = tiny_config(folder.path());
    config.training.steps = 1000;
    if (with_memory) {
      config.data.mode = DataMode::contiguous;
      config.model.position = moe::PositionKind::xl;
      config.model.memory = 16;
    }
    const TokenizedText text = text_of(config, folder);
    TrainingState state(config, text);
    for (int i = 0; i < 20; ++i) state.advance();
    state.take_records();
    const auto before = memory_statistics(default_device());
    for (int i = 0; i < 200; ++i) state.advance();
    const auto after = memory_statistics(default_device());
    EXPECT_EQ(after.current_bytes, before.current_bytes);
    EXPECT_EQ(after.peak_bytes, before.peak_bytes);
  }
}

TEST(Trainer, PartsOfABatchAddUpToTheWhole) {
  const TemporaryFolder folder;
  for (const bool documents : {false, true}) {  // with documents, rows are padded and count unequally
    std::vector<std::vector<StepRecord>> records;
    std::vector<NamedTensors> weights;
    for (const int parts : {1, 2, 4}) {
      Config config = tiny_config(folder.path());
      config.model.dropout = config.model.attention.dropout = 0;
      config.model.attention.expert_dropout = config.model.feedforward.expert_dropout = 0;
      config.model.feedforward.entropy_regularizer = 0;  // not a sum over tokens
      config.data.respect_documents = documents;
      config.optimizer.kind = OptimizerKind::sgd;
      config.optimizer.learning_rate = 0.1;
      config.training.gradient_accumulation = parts;
      const TokenizedText text = text_of(config, folder);
      TrainingState state(config, text);
      for (int i = 0; i < 5; ++i) state.advance();
      records.push_back(state.take_records());
      weights.emplace_back();
      for (const auto& [name, tensor] : state_tensors(state.model())) weights.back().emplace_back(name, tensor.clone());
    }
    for (std::size_t other = 1; other < records.size(); ++other) {
      for (std::size_t i = 0; i < 5; ++i) {
        EXPECT_NEAR(records[other][i].loss, records[0][i].loss, 1e-5);
        EXPECT_NEAR(records[other][i].gradient_norm, records[0][i].gradient_norm, 1e-5);
      }
      for (std::size_t i = 0; i < weights[0].size(); ++i)
        EXPECT_CLOSE(weights[other][i].second, weights[0][i].second, 1e-5);
    }
  }
}

TEST(Evaluation, IsTheMeanOverWindows) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  const TokenizedText text = text_of(config, folder);
  const auto model = build_model(config, *text.tokenizer);
  const EvaluationOptions options{.windows = 7, .batch = 3, .context = 16};
  const Evaluation result = evaluate(*model, text.validation, options);
  EXPECT_TRUE(model->training());

  model->eval();
  const NoGradGuard no_grad;
  const data::Batch windows = data::validation_windows(text.validation, 7, 16);
  const auto logits = model->logits(windows.inputs.to(default_device())).data().to_vector<double>();
  const auto targets = windows.targets.to_vector<std::int64_t>();
  double sum = 0;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    double total = 0;
    for (std::size_t v = 0; v < 256; ++v) total += std::exp(logits[i * 256 + v]);
    sum += std::log(total) - logits[i * 256 + static_cast<std::size_t>(targets[i])];
  }
  EXPECT_EQ(result.tokens, static_cast<std::int64_t>(targets.size()));
  EXPECT_NEAR(result.nats_per_token, sum / static_cast<double>(targets.size()), 1e-5);
}

TEST(Evaluation, WithMemoryReadsStreams) {
  const TemporaryFolder folder;
  Config config = tiny_config(folder.path());
  config.data.mode = DataMode::contiguous;
  config.model.position = moe::PositionKind::xl;
  config.model.memory = 16;
  const TokenizedText text = text_of(config, folder);
  const auto model = build_model(config, *text.tokenizer);
  const EvaluationOptions options{.windows = 6, .batch = 2, .context = 16, .memory = 16};
  const Evaluation first = evaluate(*model, text.validation, options),
                   second = evaluate(*model, text.validation, options);
  EXPECT_EQ(first.tokens, 6 * 16);
  EXPECT_EQ(first.nats_per_token, second.nats_per_token);
}

TEST(Text, BitsPerByteCountBytesOfText) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  const TokenizedText text = text_of(config, folder);
  const auto tokens = static_cast<double>(text.validation.size());
  const auto separators = static_cast<double>(text.validation.document_count());
  EXPECT_DOUBLE_EQ(text.tokens_per_byte, tokens / (tokens - separators));
  EXPECT_DOUBLE_EQ(bits_per_byte(std::log(8.0), 0.5), 1.5);
}

TEST(Sample, LoadedModelWritesTheSameTextForASeed) {
  const TemporaryFolder folder;
  const Config config = tiny_config(folder.path());
  std::filesystem::path path;
  {
    const RunFolder run = RunFolder::create(config);
    path = run.path();
    train_run(run, config);
  }
  const TrainedModel trained = load_trained_model(path, "", [](const std::string& line) { FAIL() << line; });
  EXPECT_EQ(trained.step, 12);
  const nn::SamplingOptions options{.count = 50, .context = 16};
  const std::string text = generate_text(*trained.model, *trained.tokenizer, "line ", options, 3);
  EXPECT_EQ(generate_text(*trained.model, *trained.tokenizer, "line ", options, 3), text);
  EXPECT_NE(generate_text(*trained.model, *trained.tokenizer, "line ", options, 4), text);
  EXPECT_EQ(text.find('\0'), std::string::npos);
  EXPECT_ERROR(load_trained_model(folder / "none", "", [](const std::string&) {}), "is no folder");
}

TEST(Sample, PrintableReplacesWhatATerminalCannotShow) {
  EXPECT_EQ(printable("a\tb\nc\x1b[31m\x7f"), "a\tb\nc\uFFFD[31m\uFFFD");
  EXPECT_EQ(printable("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x9a\x82"), "grüß € 🚂");
  EXPECT_EQ(printable("\xc3(\xff\xe2\x82"), "\uFFFD(\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(printable(""), "");
}

}  // namespace
}  // namespace switchyard::train
