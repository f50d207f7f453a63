#include "train/tasks/classification_task.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/grad_mode.h"
#include "core/ops/elementwise.h"
#include "tests/support/close.h"
#include "tests/train/tiny_classifier.h"
#include "train/tasks/image_classification_task.h"
#include "train/tasks/text_classification_task.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;
namespace fs = std::filesystem;

/// Loss and accuracy, counted one example at a time.
class NaiveScore {
 public:
  void add(const Variable& logits, std::size_t label) {
    const std::vector<double> values = logits.data().to(DType::f64).to_vector<double>();
    double sum = 0;
    std::size_t best = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      sum += std::exp(values[i]);
      if (values[i] > values[best]) best = i;
    }
    loss_ += std::log(sum) - values[label];
    right_ += best == label;
    ++count_;
  }
  void expect_equal(const Score& score, std::int64_t tokens_per_example) const {
    EXPECT_NEAR(score.loss, loss_ / count_, 1e-5);
    EXPECT_DOUBLE_EQ(score.accuracy.value(), right_ / count_);
    EXPECT_EQ(score.tokens, static_cast<std::int64_t>(count_) * tokens_per_example);
    EXPECT_GT(right_, 0);
    EXPECT_LT(right_, count_);  // else the accuracy would prove little
  }

 private:
  double loss_ = 0, right_ = 0, count_ = 0;
};

void train_a_little(Task& task, int steps) {
  task.model().train();
  for (int i = 0; i < steps; ++i) {
    task.model().zero_grad();
    task.training_loss().backward();
    for (const Variable& p : task.model().parameters()) ops::accumulate(p.data(), p.grad(), -0.01);
  }
}

TEST(TextClassificationTask, EvaluatesEveryTextAsANaiveLoopDoes) {
  const TemporaryFolder folder;
  const ClassifierConfig config = tiny_text_classifier(folder.path());
  TextClassificationTask task(config, folder / "text", [](const std::string&) {});
  EXPECT_EQ(task.classes(), (std::vector<std::string>{"class0", "class1", "class2"}));
  EXPECT_EQ(task.tokens_per_batch(), 6 * 20);
  train_a_little(task, 2);
  const Score score = task.evaluate();
  EXPECT_TRUE(task.model().training());  // put back

  task.model().eval();
  const NoGradGuard no_grad;
  NaiveScore naive;
  std::istringstream lines(read_bytes(folder / "valid.tsv"));
  for (std::string line; std::getline(lines, line);) {
    std::string text = line.substr(line.find('\t') + 1);
    if (text.size() > 19) text = text.substr(text.size() - 19);
    std::vector<std::int64_t> tokens = {0};
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    const auto length = static_cast<std::int64_t>(tokens.size());
    const nn::TextBatch unpadded{Tensor::from(tokens, {1, length}).to(default_device()), {}, {}};
    naive.add(task.model().logits(unpadded).output, static_cast<std::size_t>(line[5] - '0'));
  }
  naive.expect_equal(score, 20);
}

TEST(ImageClassificationTask, EvaluatesEveryImageAsANaiveLoopDoes) {
  const TemporaryFolder folder;
  const ClassifierConfig config = tiny_image_classifier(folder.path());
  ImageClassificationTask task(config, [](const std::string&) {});
  EXPECT_EQ(task.tokens_per_batch(), 6 * 5);
  train_a_little(task, 2);
  const Score score = task.evaluate();

  const std::string training = read_bytes(folder / "train-images").substr(16);
  double mean = 0, square = 0;
  for (const char c : training) mean += static_cast<unsigned char>(c) / 255.0 / static_cast<double>(training.size());
  for (const char c : training)
    square += std::pow(static_cast<unsigned char>(c) / 255.0 - mean, 2) / static_cast<double>(training.size());
  task.model().eval();
  const NoGradGuard no_grad;
  NaiveScore naive;
  const std::string pixels = read_bytes(folder / "valid-images").substr(16);
  const std::string labels = read_bytes(folder / "valid-labels").substr(8);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    std::vector<double> image;
    for (const char c : pixels.substr(64 * i, 64))
      image.push_back((static_cast<unsigned char>(c) / 255.0 - mean) / std::sqrt(square));
    naive.add(task.model().logits(Tensor::from(image, {1, 1, 8, 8}).to(DType::f32).to(default_device())).output,
              static_cast<std::size_t>(labels[i]));
  }
  naive.expect_equal(score, 5);
}

TEST(ClassificationTask, ItsPassIsTheFirstValidationExamples) {
  const TemporaryFolder folder;
  const ClassifierConfig config = tiny_image_classifier(folder.path());
  ImageClassificationTask task(config, [](const std::string&) {});
  task.model().eval();
  const Pass pass = task.validation_pass();
  EXPECT_EQ(pass.tokens, 6 * 5);
  const data::LabelledImages images =
      data::LabelledImages::open(config.data.validation_images, config.data.validation_labels);
  const auto training = data::LabelledImages::open(config.data.images, config.data.labels);
  const std::vector<data::ExampleTurn> first = {{0, 0}, {1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}};
  const Tensor expected =
      task.model().logits(images.batch(first, training.scale()).images.to(default_device())).output.data();
  EXPECT_CLOSE(pass.run(), expected, 1e-6);
  EXPECT_CLOSE(pass.run(), expected, 1e-6);
  EXPECT_FALSE(task.decoding_pass(4).has_value());
}

TEST(ClassificationTask, BatchesGoOnFromASavedPlace) {
  const TemporaryFolder folder;
  const ClassifierConfig config = tiny_image_classifier(folder.path());
  ImageClassificationTask task(config, [](const std::string&) {});
  task.model().eval();  // no dropout: the loss depends on the batch alone
  task.training_loss();
  task.run_training_batch();
  const boost::json::object place = task.state();
  const double next = task.training_loss().item<float>(), after = task.training_loss().item<float>();
  EXPECT_NE(next, after);
  task.restore(place);
  EXPECT_EQ(task.training_loss().item<float>(), next);
  task.restore(place);
  task.run_training_batch();  // also moves on
  EXPECT_EQ(task.training_loss().item<float>(), after);
}

TEST(ClassificationTask, DataThatDoNotFitAreNamed) {
  const TemporaryFolder folder;
  ClassifierConfig images = tiny_image_classifier(folder.path()), texts = tiny_text_classifier(folder.path());
  const auto message = [&](const ClassifierConfig& config) {
    return error_of([&] { new_classification_task(config, folder / "run", [](const std::string&) {}); });
  };
  const std::string at = folder.path().string() + "/";
  write_bytes(folder / "odd-images", idx_bytes({1, 8, 4}, std::string(32, 'x')));
  write_bytes(folder / "odd-labels", idx_bytes({1}, std::string(1, 7)));
  write_bytes(folder / "one-images", idx_bytes({1, 8, 8}, std::string(64, 'x')));
  ClassifierConfig bad = images;
  bad.data.images = at + "odd-images";
  bad.data.labels = at + "odd-labels";
  EXPECT_EQ(message(bad), "classifier: " + at + "odd-images: images of 8 x 4 pixels, expected squares");
  bad = images;
  bad.data.validation_images = at + "odd-images";
  bad.data.validation_labels = at + "odd-labels";
  EXPECT_EQ(message(bad),
            "classifier: " + at + "odd-images: images of 8 x 4 pixels, expected those of the training images, 8 x 8");
  bad.data.validation_images = at + "one-images";
  EXPECT_EQ(message(bad),
            "classifier: " + at + "odd-labels: label 7 is unknown, expected at most the largest training label 3");
  bad = images;
  bad.model.patch_size = 3;
  EXPECT_EQ(message(bad),
            "config: model.patch_size: 3 does not divide the images' height and width 8, expected a divisor of it");
  bad = images;
  bad.data.most_shift = 8;
  EXPECT_EQ(message(bad), "config: data.most_shift: 8 moves images of 8 x 8 out of sight, expected at most 7");
  bad.data.most_shift = 7;
  EXPECT_NO_THROW(new_classification_task(bad, folder / "run", [](const std::string&) {}));
  write_bytes(folder / "train.tsv", "good\tx\ngood\ty\n");
  EXPECT_EQ(message(texts), "classifier: all training texts are labelled \"good\", expected at least two classes");
}

}  // namespace
}  // namespace switchyard::train
