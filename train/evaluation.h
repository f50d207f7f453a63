#pragma once

#include <cstdint>

#include "data/token_file.h"
#include "nn/transformer.h"

namespace switchyard::train {

struct EvaluationOptions {
  std::int64_t windows = 256;  ///< at most; fewer where the text is short
  std::int64_t batch = 16;     ///< windows at once
  std::int64_t context = 256;  ///< tokens per window
  std::int64_t memory = 0;     ///< tokens of the previous segment attended to (Transformer-XL)
};

struct Evaluation {
  double nats_per_token = 0;
  std::int64_t tokens = 0;  ///< predicted
};

/// Mean cross-entropy of `model`, in evaluation mode and without gradients, on windows spread evenly over `tokens`;
/// with a memory, on streams that are read in order. The same windows at every call. The model's mode is put back.
/// Reads one number back from the device, at the end.
Evaluation evaluate(nn::LanguageModel& model, const data::TokenFile& tokens, const EvaluationOptions& options);

}  // namespace switchyard::train
