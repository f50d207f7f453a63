#pragma once

#include "data/labelled_images.h"
#include "train/tasks/classification_task.h"

namespace switchyard::train {

/// A vision transformer on grey images.
class ImageClassificationTask : public ClassificationTask {
 public:
  /// See new_classification_task.
  ImageClassificationTask(const ClassifierConfig& config, const std::function<void(const std::string&)>& report);

  nn::VisionTransformer& model() override { return *model_; }

 private:
  struct Images {
    data::LabelledImages training, validation;
  };
  static Images open(const ClassifierConfig& config, const std::function<void(const std::string&)>& report);
  ImageClassificationTask(const ClassifierConfig& config, Images images);

  nn::Encoder& encoder() const override { return model_->encoder(); }
  std::int64_t tokens_per_example() const override { return 1 + model_->patches(); }
  std::int64_t validation_examples() const override { return images_.validation.size(); }
  Batch batch(Part part, std::span<const data::ExampleTurn> turns) const override;
  /// The class's name, or its number where classes have none.
  std::string label_of(std::int64_t number) const;
  boost::json::object describe(const Batch& batch, const std::vector<double>& macs) const override;
  nn::LayerOutput logits(const Batch& batch) override { return model_->logits(batch.inputs); }

  Images images_;
  data::ImageScale scale_;  // of the training images
  std::unique_ptr<nn::VisionTransformer> model_;
};

}  // namespace switchyard::train
