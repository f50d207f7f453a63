#include "train/tasks/text_classification_task.h"

#include <boost/json/array.hpp>

#include "core/error.h"
#include "train/sample.h"
#include "train/text.h"

namespace switchyard::train {
namespace {

namespace fs = std::filesystem;

/// The texts as documents, for a tokenizer to learn from.
data::Corpus corpus_of(const data::LabelledTexts& texts) {
  std::string all;
  for (const std::string& text : texts.texts) all += text + '\n';
  return data::Corpus::from_text("the labelled texts", std::move(all));
}

}  // namespace

TextClassificationTask::TextClassificationTask(const ClassifierConfig& config, const fs::path& folder,
                                               const std::function<void(const std::string&)>& report)
    : TextClassificationTask(config, read(config, folder, report)) {}

TextClassificationTask::TextClassificationTask(const ClassifierConfig& config, Texts texts)
    : ClassificationTask(config, texts.training.size(), texts.training.checksum()),
      tokenizer_(std::move(texts.tokenizer)),
      classes_(std::move(texts.classes)),
      training_(std::move(texts.training)),
      validation_(std::move(texts.validation)) {
  Generator weights(static_cast<std::uint64_t>(config.training.seed));
  model_ = build_text_classifier(config.model, tokenizer_->vocabulary_size(),
                                 static_cast<std::int64_t>(classes_.size()), weights);
  place(*model_);
}

TextClassificationTask::Texts TextClassificationTask::read(const ClassifierConfig& config, const fs::path& folder,
                                                           const std::function<void(const std::string&)>& report) {
  const auto paths_of = [](const std::vector<std::string>& files) {
    return std::vector<fs::path>(files.begin(), files.end());
  };
  const data::LabelledTexts training = data::read_labelled_texts(paths_of(config.data.files), config.data.classes);
  check(training.classes.size() > 1, "classifier: all training texts are labelled \"", training.classes[0],
        "\", expected at least two classes");
  const data::LabelledTexts validation =
      data::read_labelled_texts(paths_of(config.data.validation_files), training.classes);
  make_text_folder(folder);
  make_tokenizer(config.data.tokenizer, corpus_of(training), folder);
  auto tokenizer = load_tokenizer(config.data.tokenizer, folder);
  report("texts: " + std::to_string(training.texts.size()) + " to train on, " +
         std::to_string(validation.texts.size()) + " to validate on, " + std::to_string(training.classes.size()) +
         " classes");
  data::TextExamples training_examples(training, *tokenizer, config.model.context);
  data::TextExamples validation_examples(validation, *tokenizer, config.model.context);
  return {std::move(tokenizer), training.classes, std::move(training_examples), std::move(validation_examples)};
}

ClassificationTask::Batch TextClassificationTask::batch(Part part, std::span<const data::ExampleTurn> turns) const {
  const data::LabelledTextBatch texts = (part == Part::training ? training_ : validation_).batch(turns);
  return {texts.tokens.to(device()), texts.padding.to(device()), texts.labels.to(device())};
}

boost::json::object TextClassificationTask::describe(const Batch& batch, const std::vector<double>& macs) const {
  const auto padding = batch.padding.to_vector<bool>();
  const auto ids = batch.inputs.to_vector<std::int64_t>();
  const std::vector<std::string> texts = token_texts(*tokenizer_, ids);
  boost::json::array tokens;
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (!padding[i]) tokens.push_back({{"text", texts[i]}, {"macs", macs[i]}});
  return {{"kind", "text"}, {"tokens", std::move(tokens)}};
}

}  // namespace switchyard::train
