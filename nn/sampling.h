#pragma once

#include "nn/transformer.h"

namespace switchyard::nn {

struct SamplingOptions {
  std::int64_t count = 100;  ///< tokens to generate
  double temperature = 1;    ///< divides the logits; 0 always takes the most probable token
  std::int64_t top_k = 0;    ///< consider only the k most probable tokens; 0 means all
  double top_p = 1;          ///< consider only the fewest tokens whose probabilities reach this sum
  /// Tokens the model may look back on; 0 for no limit. When reached, decoding starts again from the last half.
  std::int64_t context = 0;
};

/// Draws one token from logits [V]: temperature, then top_k, then top_p. Throws Error where a logit is NaN and, but at
/// temperature 0, where the largest is infinite.
std::int64_t sample(const std::vector<double>& logits, const SamplingOptions& options, Generator& generator);

/// Continues `prompt` (at least one token) and returns the new tokens only. Runs in evaluation mode and without
/// gradients; the model's mode is put back afterwards.
std::vector<std::int64_t> generate(LanguageModel& model, const std::vector<std::int64_t>& prompt,
                                   const SamplingOptions& options, Generator& generator);

}  // namespace switchyard::nn
