#pragma once

#include <memory>

#include "moe/language_model_config.h"
#include "nn/transformer.h"

namespace switchyard::moe {

/// The attention layer of one block of the model.
std::unique_ptr<nn::AttentionLayer> build_attention(const LanguageModelConfig& config,
                                                    Generator& generator = nn::initial_weights());
/// The feed-forward layer of one block of the model.
std::unique_ptr<nn::FeedForwardLayer> build_feed_forward(const LanguageModelConfig& config,
                                                         Generator& generator = nn::initial_weights());

/// The decoder language model that the configuration describes: a dense transformer, SwitchHead (experts in attention),
/// sigma-MoE (experts in the feed-forward) or SwitchAll (both), on the CPU in f32. Throws Error for a configuration
/// that validate() refuses, or without a vocabulary_size.
std::unique_ptr<nn::LanguageModel> build_language_model(const LanguageModelConfig& config,
                                                        Generator& generator = nn::initial_weights());

}  // namespace switchyard::moe
