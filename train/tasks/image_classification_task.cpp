#include "train/tasks/image_classification_task.h"

#include <boost/json/array.hpp>
#include <cmath>

#include "core/error.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

json::array rows_of(const double* values, std::int64_t rows, std::int64_t columns) {
  json::array result;
  for (; rows > 0; --rows, values += columns) result.push_back(json::array(values, values + columns));
  return result;
}

/// As many as are named, or else occur.
std::int64_t class_count(const ClassifierConfig& config, const data::LabelledImages& training) {
  const auto named = static_cast<std::int64_t>(config.data.classes.size());
  return named > 0 ? named : training.classes();
}

/// Throws Error where `images`, whose labels are in `file`, have one that is none of the classes 0 to `last`.
void check_labels(const data::LabelledImages& images, const std::string& file, const ClassifierConfig& config,
                  std::int64_t last) {
  check(images.classes() - 1 <= last, "classifier: ", file, ": label ", images.classes() - 1,
        " is unknown, expected at most ",
        config.data.classes.empty() ? "the largest training label " : "the number of the last of data.classes, ", last);
}

}  // namespace

ImageClassificationTask::ImageClassificationTask(const ClassifierConfig& config,
                                                 const std::function<void(const std::string&)>& report)
    : ImageClassificationTask(config, open(config, report)) {}

ImageClassificationTask::ImageClassificationTask(const ClassifierConfig& config, Images images)
    : ClassificationTask(config, images.training.size(), images.training.checksum()),
      images_(std::move(images)),
      scale_(config.data.deviation > 0 ? data::ImageScale{config.data.mean, config.data.deviation}
                                       : images_.training.scale()) {
  Generator weights(static_cast<std::uint64_t>(config.training.seed));
  model_ =
      build_image_classifier(config.model, images_.training.height(), class_count(config, images_.training), weights);
  place(*model_);
}

ImageClassificationTask::Images ImageClassificationTask::open(const ClassifierConfig& config,
                                                              const std::function<void(const std::string&)>& report) {
  const ClassifierDataConfig& data = config.data;
  check(config.model.channels == 1, "config: model.channels: ", config.model.channels,
        ", expected 1: the images of IDX files are grey");
  Images images{data::LabelledImages::open(data.images, data.labels),
                data::LabelledImages::open(data.validation_images, data.validation_labels)};
  const data::LabelledImages &training = images.training, &validation = images.validation;
  check(training.height() == training.width(), "classifier: ", data.images, ": images of ", training.height(), " x ",
        training.width(), " pixels, expected squares");
  check(validation.height() == training.height() && validation.width() == training.width(),
        "classifier: ", data.validation_images, ": images of ", validation.height(), " x ", validation.width(),
        " pixels, expected those of the training images, ", training.height(), " x ", training.width());
  validate_shift(data, training.height());
  const std::int64_t classes = class_count(config, training);
  check(classes > 1, "classifier: ", data.labels, ": all labels are 0, expected at least two classes");
  check_labels(training, data.labels, config, classes - 1);
  check_labels(validation, data.validation_labels, config, classes - 1);
  report("images: " + std::to_string(training.size()) + " to train on, " + std::to_string(validation.size()) +
         " to validate on, " + std::to_string(classes) + " classes");
  return images;
}

ClassificationTask::Batch ImageClassificationTask::batch(Part part, std::span<const data::ExampleTurn> turns) const {
  const data::LabelledImageBatch images = part == Part::training
                                              ? images_.training.batch(turns, scale_, config().data.most_shift)
                                              : images_.validation.batch(turns, scale_);
  return {images.images.to(device()), {}, images.labels.to(device())};
}

std::string ImageClassificationTask::label_of(std::int64_t number) const {
  const std::vector<std::string>& names = config().data.classes;
  return names.empty() ? std::to_string(number) : names.at(static_cast<std::size_t>(number));
}

boost::json::object ImageClassificationTask::describe(const Batch& batch, const std::vector<double>& macs) const {
  const auto labels = batch.labels.to_vector<std::int64_t>();
  const auto side = std::llround(std::sqrt(static_cast<double>(model_->patches())));
  json::array images;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto image = static_cast<std::int64_t>(i);
    const Tensor scaled = batch.inputs.select(0, image);  // [1, height, width]
    auto pixels = scaled.to_vector<double>();
    for (double& pixel : pixels) pixel = std::round(255 * (pixel * scale_.deviation + scale_.mean));
    const double* of_patches = macs.data() + image * tokens_per_example() + 1;  // behind the class token
    images.push_back({{"label", label_of(labels[i])},
                      {"pixels", json::array{rows_of(pixels.data(), scaled.size(1), scaled.size(2))}},
                      {"macs", rows_of(of_patches, side, side)}});
  }
  return {{"kind", "images"}, {"images", std::move(images)}};
}

}  // namespace switchyard::train
