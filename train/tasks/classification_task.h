#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "data/example_order.h"
#include "nn/encoder.h"
#include "train/classifier_config.h"
#include "train/tasks/open.h"

namespace switchyard::train {

/// What classifiers of texts and of images have in common.
class ClassificationTask : public Task {
 public:
  std::int64_t layers() const override { return encoder().layers(); }
  nn::TransformerBlock& block(std::int64_t index) override { return encoder().block(index); }

  Variable training_loss() override;
  void run_training_batch() override;
  Score evaluate() override;
  /// The logits of the first validation examples.
  Pass validation_pass() override;
  std::optional<Pass> decoding_pass(std::int64_t) override { return std::nullopt; }
  /// The first validation examples.
  Exhibit exhibit() override;
  std::int64_t tokens_per_batch() const override { return config_.training.batch * tokens_per_example(); }

  boost::json::object state() const override { return order_.state(); }
  void restore(const boost::json::object& state) override { order_.restore(state); }

  const ClassifierConfig& config() const { return config_; }

 protected:
  enum class Part { training, validation };
  /// Some examples on the model's device.
  struct Batch {
    Tensor inputs;   ///< tokens i64 [B, T] or images [B, 1, height, width]
    Tensor padding;  ///< of texts: bool [B, T], true where there is no token
    Tensor labels;   ///< i64 [B]
  };

  /// `training_examples`, with the checksum `content`, are ordered by the config's seed.
  ClassificationTask(const ClassifierConfig& config, std::int64_t training_examples, std::uint64_t content);

  virtual nn::Encoder& encoder() const = 0;
  virtual std::int64_t tokens_per_example() const = 0;
  virtual std::int64_t validation_examples() const = 0;
  virtual Batch batch(Part part, std::span<const data::ExampleTurn> turns) const = 0;
  /// [B, classes].
  virtual nn::LayerOutput logits(const Batch& batch) = 0;
  /// The batch as Exhibit::describe is to give it.
  virtual boost::json::object describe(const Batch& batch, const std::vector<double>& macs) const = 0;

  Device device() const { return Device::parse(config_.training.device); }
  /// Brings a model that was just built to the config's dtype and device.
  void place(nn::Module& model) const;

 private:
  /// `count` validation examples from number `begin` on; fewer at their end.
  Batch validation_batch(std::int64_t begin, std::int64_t count) const;
  Pass pass_of(const Batch& batch);

  ClassifierConfig config_;
  data::ExampleOrder order_;
};

/// A new model, with weights drawn from the config's seed, and the data that `config` names. `run` is the folder of its
/// run, where a tokenizer is kept; `report` gets a line about the data.
std::unique_ptr<ClassificationTask> new_classification_task(const ClassifierConfig& config,
                                                            const std::filesystem::path& run,
                                                            const std::function<void(const std::string&)>& report);

/// The trained classifier of a run; see open_task.
std::unique_ptr<ClassificationTask> open_classification_task(const std::filesystem::path& run,
                                                             const TaskOptions& options,
                                                             const std::function<void(const std::string&)>& report);

}  // namespace switchyard::train
