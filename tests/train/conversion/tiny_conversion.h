#pragma once

#include "tests/train/tiny_run.h"
#include "train/conversion/conversion.h"

namespace switchyard::train {

/// Takes lines for people and says nothing.
inline const auto kSilent = [](const std::string&) {};
/// What programs call the device that the tests run on.
inline std::string device() { return testing::text_of(default_device()); }
inline double loss_of(const boost::json::value& score) { return score.at("loss").as_double(); }

/// A dense model of two layers of 64 neurons, trained for some steps on tiny_text(). Returns the run's folder.
inline std::filesystem::path train_dense_run(const std::filesystem::path& folder) {
  Config config = tiny_config(folder);
  config.model.attention.kind = moe::AttentionKind::dense;
  config.model.attention.dropout = 0;
  config.model.feedforward.kind = moe::FeedForwardKind::dense;
  config.model.feedforward.width = 64;
  config.model.feedforward.bias = true;
  config.training.steps = 60;
  config.training.log_every = 60;
  config.output.name = "dense";
  const RunFolder run = RunFolder::create(config);
  train_run(run, config);
  return run.path();
}

/// A conversion of that model in a few steps.
inline ConversionConfig tiny_conversion(const std::filesystem::path& run) {
  ConversionConfig config;
  config.model = run.string();
  config.training.log_every = 10;
  config.sparsify.steps = 80;
  config.sparsify.weight = 0.3;
  config.sparsify.optimizer.learning_rate = 0.005;
  config.experts.expert_width = 4;
  config.routers.steps = 60;
  config.routers.hidden = 16;
  config.routers.tokens = 48;  // of 64 in a batch
  config.routers.optimizer.learning_rate = 0.01;
  return config;
}

}  // namespace switchyard::train
