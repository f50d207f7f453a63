#pragma once

#include "data/labelled_texts.h"
#include "train/tasks/classification_task.h"

namespace switchyard::train {

/// A classifier of texts, on files of labelled texts.
class TextClassificationTask : public ClassificationTask {
 public:
  /// See new_classification_task; `folder` keeps the tokenizer.
  TextClassificationTask(const ClassifierConfig& config, const std::filesystem::path& folder,
                         const std::function<void(const std::string&)>& report);

  nn::TextClassifier& model() override { return *model_; }
  /// Names of the classes, in the order of the logits.
  const std::vector<std::string>& classes() const { return classes_; }

 private:
  struct Texts {
    std::shared_ptr<const data::Tokenizer> tokenizer;
    std::vector<std::string> classes;
    data::TextExamples training, validation;
  };
  static Texts read(const ClassifierConfig& config, const std::filesystem::path& folder,
                    const std::function<void(const std::string&)>& report);
  TextClassificationTask(const ClassifierConfig& config, Texts texts);

  nn::Encoder& encoder() const override { return model_->encoder(); }
  std::int64_t tokens_per_example() const override { return config().model.context; }
  std::int64_t validation_examples() const override { return validation_.size(); }
  Batch batch(Part part, std::span<const data::ExampleTurn> turns) const override;
  nn::LayerOutput logits(const Batch& batch) override { return model_->logits({batch.inputs, {}, batch.padding}); }
  boost::json::object describe(const Batch& batch, const std::vector<double>& macs) const override;

  std::shared_ptr<const data::Tokenizer> tokenizer_;
  std::vector<std::string> classes_;
  data::TextExamples training_, validation_;
  std::unique_ptr<nn::TextClassifier> model_;
};

}  // namespace switchyard::train
