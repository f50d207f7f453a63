#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "nn/transformer.h"

namespace switchyard::train {

/// How a model does on its validation data.
struct Score {
  double loss = 0;                 ///< mean cross-entropy in nats: per predicted token, or per example of a classifier
  std::optional<double> accuracy;  ///< share of examples classified right; none for language models
  std::int64_t tokens = 0;         ///< that ran through the model
};

/// A piece of work of a model whose data lies on its device already, to be repeated: what times are taken of.
struct Pass {
  /// In the mode the model is in, without gradients. Nothing waits for the device, so a GPU can record it as a graph;
  /// whoever reads the result waits for all of it.
  std::function<Tensor()> run;
  std::int64_t tokens = 0;  ///< that go through the model in one run
};

/// Validation data to look at, together with what it costs: some thousand tokens.
struct Exhibit {
  static constexpr std::int64_t kTokens = 1024;  ///< at most, but at least one window or example

  Pass pass;
  /// The data as JSON, see conversion/compute_map.h. `macs` holds the multiply-adds of each of the pass's tokens.
  std::function<boost::json::object(const std::vector<double>& macs)> describe;
};

/// A model together with the data that it learns from and is judged on: all that a plain training loop or a phase of a
/// conversion needs to know of a language model, a classifier of texts or one of images.
class Task {
 public:
  virtual ~Task() = default;

  virtual nn::Module& model() = 0;
  virtual std::int64_t layers() const = 0;
  virtual nn::TransformerBlock& block(std::int64_t index) = 0;

  /// The loss of the next training batch, regularisers included: what to call backward() on. In the mode the model is
  /// in. Nothing waits for the device.
  virtual Variable training_loss() = 0;
  /// Runs the next training batch through the model in evaluation mode without gradients; its result is dropped. For
  /// layers that look at what passes through them.
  virtual void run_training_batch() = 0;
  /// The model in evaluation mode, without gradients, on the same validation data at every call. Its mode is put back.
  virtual Score evaluate() = 0;
  /// A batch of validation data, as large as those of training, through the model. The same one at every call.
  virtual Pass validation_pass() = 0;
  /// The first `tokens` tokens of the validation data through the model one after the other, as a language model
  /// generates them; none for models that do not.
  virtual std::optional<Pass> decoding_pass(std::int64_t tokens) = 0;
  /// Some of the validation data, the same at every call.
  virtual Exhibit exhibit() = 0;
  /// Tokens of one training batch, filling included.
  virtual std::int64_t tokens_per_batch() const = 0;

  /// The place in the training data, and back to it.
  virtual boost::json::object state() const = 0;
  virtual void restore(const boost::json::object& state) = 0;
};

}  // namespace switchyard::train
