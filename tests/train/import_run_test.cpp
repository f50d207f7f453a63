#include <gtest/gtest.h>

#include <cmath>

#include "autograd/grad_mode.h"
#include "data/unicode.h"
#include "tests/support/close.h"
#include "tests/train/import_fixtures.h"
#include "tests/train/tiny_classifier.h"
#include "train/conversion/conversion.h"
#include "train/import/run.h"
#include "train/sample.h"
#include "train/tasks/open.h"

namespace switchyard::train {
namespace {

const auto kNobody = [](const std::string&) {};

/// Writes the run folder `out`; returns what was reported.
std::string write_run(const fs::path& model, const std::vector<std::string>& overrides, const fs::path& out) {
  std::string reports;
  write_imported_run(HubFolder(model), overrides, out, [&](const std::string& line) { reports += line + '\n'; });
  return reports;
}

using ImportedRun = ChangedImport;

TEST_F(ImportedRun, OfALanguageModelWithoutItsTokenizerKeepsTheWeights) {
  const fs::path out = folder_ / "run";
  EXPECT_EQ(write_run(fixture("gpt2"), {}, out).substr(0, 19), "without a tokenizer");
  const Config config = RunFolder::read_config(out);
  const auto model = moe::build_language_model(config.model);
  const auto checkpoint = latest_good(RunFolder::checkpoints_path(out), kNobody);
  ASSERT_TRUE(checkpoint.has_value());
  load_tensors(checkpoint->model, state_tensors(*model));
  const NoGradGuard no_grad;
  model->eval();
  EXPECT_CLOSE(model->logits(expected("gpt2", "input_ids")).data(), expected("gpt2", "logits"), kTolerance);
  EXPECT_ERROR(load_trained_model(out, "", kNobody),
               "text: " + (out / "text").string() + ": has no tokenizer: data.tokenizer.kind is \"none\"");
  EXPECT_ERROR(write_run(fixture("gpt2"), {}, out),
               "import: " + out.string() + ": is the folder of a run already, expected a new one");
}

class ImportedRunWithTokenizer : public ChangedImport {
 protected:
  /// The GPT-2 with room for `pieces`, beside whose tokenizer it stands, becomes a run; that must be one like any
  /// other.
  void expect_run(std::int64_t pieces) {
    replace_in_config("\"vocab_size\": 61", "\"vocab_size\": " + std::to_string(pieces));
    tensor("transformer.wte.weight") = Tensor::ones({pieces, 24});
    save_safetensors(folder_ / "model.safetensors", tensors_);
    const fs::path out = folder_ / "run", text = text_file();
    write_run(folder_.path(), {"data.files=[\"" + text.string() + "\"]"}, out);
    const TrainedModel trained = load_trained_model(out, "", kNobody);
    EXPECT_EQ(trained.tokenizer->vocabulary_size(), pieces);
    EXPECT_FALSE(generate_text(*trained.model, *trained.tokenizer, "The", {.count = 8}, 1).empty());
    const auto task = open_task(out, {.device = testing::text_of(default_device()), .batch = 2}, kNobody);
    EXPECT_EQ(task->layers(), 2);
    // All embeddings are alike, so every piece is as likely as another.
    EXPECT_NEAR(task->evaluate().loss, std::log(static_cast<double>(pieces)), 1e-4);
    for (const char* dtype : {"f32", "bf16"}) expect_training_begins(pieces, dtype);
  }

  /// ... with the weights that were imported, which so small a learning rate leaves as they are.
  void expect_training_begins(std::int64_t pieces, const std::string& dtype) {
    SCOPED_TRACE(dtype);
    const fs::path out = folder_ / dtype;
    write_run(folder_.path(),
              {"data.files=[\"" + text_file().string() + "\"]", "training.dtype=" + dtype, "training.steps=3",
               "training.batch=2", "training.log_every=1", "optimizer.learning_rate=1e-9",
               "training.device=" + testing::text_of(default_device())},
              out);
    const RunFolder run = RunFolder::open(out);
    ASSERT_EQ(train_run(run, run.config()), Trainer::Outcome::finished);
    const auto lines = read_metrics(run.metrics_path());
    ASSERT_GE(lines.size(), 3u);
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_NEAR(lines[i].at("loss").as_double(), std::log(static_cast<double>(pieces)), 1e-3);
    EXPECT_FALSE(holds_weights_only(open_checkpoint(checkpoint_of(out, 3))));
  }

  fs::path text_file() {
    testing::write_bytes(folder_ / "text.txt", tiny_text());
    return folder_ / "text.txt";
  }
};

TEST_F(ImportedRunWithTokenizer, OfSentencePieces) {
  if (!data::has_sentencepiece()) GTEST_SKIP() << "built without SentencePiece";
  data::train_sentencepiece(data::Corpus::from_paths({text_file()}), folder_ / "tokenizer.model",
                            {.vocabulary_size = 300});
  expect_run(300);
}

TEST_F(ImportedRunWithTokenizer, OfBytePairs) {
  if (!data::has_unicode()) GTEST_SKIP() << "built without utf8proc";
  fs::copy_file(fixture("tokenizers") / "gpt2.json", folder_ / "tokenizer.json");
  expect_run(1000);
}

TEST_F(ImportedRunWithTokenizer, OfMoreTokensThanTheModelEmbeds) {
  if (!data::has_unicode()) GTEST_SKIP() << "built without utf8proc";
  fs::copy_file(fixture("tokenizers") / "gpt2.json", folder_ / "tokenizer.json");
  save_safetensors(folder_ / "model.safetensors", tensors_);
  EXPECT_EQ(write_run(folder_.path(), {}, folder_ / "run"),
            "without a tokenizer: " + (folder_ / "tokenizer.json").string() +
                ": has 1000 tokens, of which the model embeds 61; programs that need text refuse the run\n");
}

TEST_F(ImportedRun, IsNotMadeOfWhatDoesNotFitNorAmongOtherFiles) {
  const auto error = [this](const std::string& override) {
    return testing::error_of([&] { write_run(fixture("vit_grey"), {override}, folder_ / "run"); });
  };
  EXPECT_EQ(error("training.device=gpu"),
            "config: training.device: \"gpu\" is unknown, expected \"cpu\", \"cuda\" or \"cuda:<index>\"");
  EXPECT_EQ(error("data.tokenizer.model=a.json"),
            "config: data.tokenizer.model: \"a.json\" is given, expected none with tokenizer \"bytes\"");
  EXPECT_FALSE(fs::exists(folder_ / "run"));
  fs::create_directories(folder_ / "run/text");
  testing::write_bytes(folder_ / "run/text/tokenizer.json", "{}");
  EXPECT_EQ(error("training.steps=1"),
            "import: " + (folder_ / "run/text").string() + ": holds files already, expected a new folder");
}

/// Splits the layers of `run` into experts, in `folder`, and expects the logits of its validation data.
void expect_the_same_in_experts(const fs::path& run, const fs::path& folder, const Tensor& logits) {
  ConversionConfig config;
  config.model = run.string();
  config.phases = {PhaseKind::experts};
  config.experts.expert_width = 4;
  Conversion converted(folder, config, "", kNobody);
  ASSERT_TRUE(converted.run([] { return false; }));
  EXPECT_CLOSE(converted.task().validation_pass().run(), logits, kTolerance);
}

/// Overrides that name the images of the grey ViT's fixture, with labels 2 and 1, to train and to validate on.
std::vector<std::string> grey_images(const fs::path& folder) {
  std::string pixels;
  for (const std::int32_t pixel : expected("vit_grey", "pixels").to_vector<std::int32_t>())
    pixels += static_cast<char>(pixel);
  const std::string images = (folder / "images").string(), labels = (folder / "labels").string();
  testing::write_bytes(images, idx_bytes({2, 12, 12}, pixels));
  testing::write_bytes(labels, idx_bytes({2}, "\2\1"));
  return {"data.images=" + images, "data.labels=" + labels, "data.validation_images=" + images,
          "data.validation_labels=" + labels, "training.device=" + testing::text_of(default_device())};
}

TEST_F(ImportedRun, OfAVitClassifiesImageFilesAsTheLibraryDoes) {
  const NoGradGuard no_grad;
  const fs::path out = folder_ / "run";
  EXPECT_EQ(write_run(fixture("vit_grey"), grey_images(folder_.path()), out), "");
  const auto task = open_task(out, {}, kNobody);
  EXPECT_CLOSE(task->validation_pass().run(), expected("vit_grey", "logits"), kTolerance);
  EXPECT_EQ(task->evaluate().tokens, 2 * 10);
  const Exhibit exhibit = task->exhibit();
  const boost::json::object shown =
      exhibit.describe(std::vector<double>(static_cast<std::size_t>(exhibit.pass.tokens)));
  EXPECT_EQ(shown.at("images").at(0).at("label"), "line");
  EXPECT_EQ(shown.at("images").at(1).at("label"), "square");

  expect_the_same_in_experts(out, folder_ / "converted", expected("vit_grey", "logits"));
}

TEST_F(ImportedRun, OfAVitNamesImagesThatDoNotSuitIt) {
  const auto error = [this](const std::string& family, std::vector<std::string> overrides) {
    const fs::path out = folder_ / "run";
    write_run(fixture(family), overrides, out);
    const std::string message = testing::error_of([&] { open_task(out, {}, kNobody); });
    fs::remove_all(out);
    return message;
  };
  std::vector<std::string> images = grey_images(folder_.path());
  EXPECT_EQ(write_run(fixture("vit_grey"), {}, folder_ / "bare"),
            "without data: " + (folder_ / "bare/config.json").string() +
                " is to name the files to train and to validate on in its section \"data\"\n");
  EXPECT_ERROR(open_task(folder_ / "bare", {}, kNobody), "config: data.images: is empty, expected an IDX file");
  EXPECT_EQ(
      write_run(fixture("vit"), images, folder_ / "coloured"),
      "for the C++ API alone: the model sees images of 3 channels, those of IDX files have 1; programs refuse the "
      "run\n");
  EXPECT_EQ(error("vit", images), "config: model.channels: 3, expected 1: the images of IDX files are grey");
  testing::write_bytes(folder_ / "labels", idx_bytes({2}, "\2\3"));
  EXPECT_EQ(error("vit_grey", images), "classifier: " + (folder_ / "labels").string() +
                                           ": label 3 is unknown, expected at most the number of the last of "
                                           "data.classes, 2");
  testing::write_bytes(folder_ / "images", idx_bytes({2, 8, 8}, std::string(128, 'x')));
  testing::write_bytes(folder_ / "labels", idx_bytes({2}, "\2\1"));
  EXPECT_EQ(error("vit_grey", images), "config: model.image_size: 12 is not that of the data, images of 8 x 8");
}

TEST_F(ImportedRun, OfAVitNamesScalesWithoutACounterpart) {
  for (const char* file : {"config.json", "model.safetensors"})
    fs::copy_file(fixture("vit_grey") / file, folder_ / file, fs::copy_options::overwrite_existing);
  const auto error = [this](const std::string& preprocessor) {
    testing::write_bytes(folder_ / "preprocessor_config.json", preprocessor);
    const std::string message = testing::error_of([&] { write_run(folder_.path(), {}, folder_ / "run"); });
    return message.substr(message.find("json: ") + 6);
  };
  EXPECT_EQ(error(R"({"do_rescale": false})"), "do_rescale: false has no counterpart here, expected true");
  EXPECT_EQ(error(R"({"rescale_factor": 0.5})"), "rescale_factor: 0.5 has no counterpart here, expected 1/255");
  EXPECT_EQ(error(R"({"image_mean": [0.5, 0.5, 0.5]})"), "image_mean: [5E-1,5E-1,5E-1], expected a list of one number");
  EXPECT_EQ(error(R"({"image_mean": [0.5]})"), "has no image_std");
  EXPECT_EQ(error(R"({"image_mean": [0.5], "image_std": [0]})"), "image_std: 0, expected more than 0");
  testing::write_bytes(folder_ / "preprocessor_config.json", R"({"do_normalize": false})");
  write_run(folder_.path(), {}, folder_ / "run");
  const ClassifierConfig config =
      load_config<ClassifierConfig>(folder_ / "run/config.json", grey_images(folder_.path()));
  EXPECT_EQ(config.data.mean, 0);
  EXPECT_EQ(config.data.deviation, 1);
}

/// Overrides that name the texts of the BERT's fixture to train and to validate on.
std::vector<std::string> labelled_texts() {
  const std::string files = "[\"" + (fixture("bert_texts") / "texts.tsv").string() + "\"]";
  return {"data.files=" + files, "data.validation_files=" + files,
          "training.device=" + testing::text_of(default_device())};
}

TEST_F(ImportedRun, OfABertClassifiesTextsAsTheLibraryDoes) {
  if (!data::has_unicode()) GTEST_SKIP() << "built without utf8proc";
  const NoGradGuard no_grad;
  const fs::path model = fixture("bert_texts"), out = folder_ / "run";
  EXPECT_EQ(write_run(model, labelled_texts(), out), "");
  const auto task = open_task(out, {}, kNobody);
  EXPECT_CLOSE(task->validation_pass().run(), expected("bert_texts", "logits"), kTolerance);
  const boost::json::object shown = task->exhibit().describe(std::vector<double>(4 * 48));
  EXPECT_EQ(shown.at("tokens").at(1).at("text"), " a");

  expect_the_same_in_experts(out, folder_ / "converted", expected("bert_texts", "logits"));
}

TEST_F(ImportedRun, OfABertTrainsOn) {
  if (!data::has_unicode()) GTEST_SKIP() << "built without utf8proc";
  std::vector<std::string> overrides = labelled_texts();
  for (const char* override : {"training.steps=2", "training.batch=4", "training.log_every=1", "model.dropout=0",
                               "model.attention.dropout=0", "optimizer.learning_rate=1e-12"})
    overrides.emplace_back(override);
  const fs::path out = folder_ / "run";
  write_run(fixture("bert_texts"), overrides, out);
  const auto logits = expected("bert_texts", "logits").to_vector<float>();
  double loss = 0;  // of labels good, bad, good, bad, which are classes 0 and 1
  for (std::size_t i = 0; i < 4; ++i) {
    const double right = logits[2 * i + i % 2], wrong = logits[2 * i + 1 - i % 2];
    loss += std::log1p(std::exp(wrong - right)) / 4;
  }
  const RunFolder run = RunFolder::open(out);
  train_classifier(run, load_config<ClassifierConfig>(run.config_path()));
  const auto lines = read_metrics(run.metrics_path());
  ASSERT_GE(lines.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) EXPECT_NEAR(lines[i].at("loss").as_double(), loss, 1e-5);
}

TEST_F(ImportedRun, OfABertWithoutItsTokenizerRefusesTexts) {
  for (const char* file : {"config.json", "model.safetensors"})
    fs::copy_file(fixture("bert_texts") / file, folder_ / file, fs::copy_options::overwrite_existing);
  EXPECT_EQ(write_run(folder_.path(), labelled_texts(), folder_ / "run"),
            "without a tokenizer: " + folder_.path().string() +
                " has neither tokenizer.json nor a SentencePiece "
                "tokenizer.model; programs that need text refuse the run\n");
  EXPECT_ERROR(open_task(folder_ / "run", {}, kNobody), "has no tokenizer: data.tokenizer.kind is \"none\"");
}

}  // namespace
}  // namespace switchyard::train
