// A SwitchAll language model trained by a loop of one's own, without Trainer or configuration file.
//
//   build/cpu/bin/from_scratch [text files or folders]        (without any: the text built into the program)
//
// It prints the loss as it falls, then a sample of what the model writes. STEPS=... in the environment sets the steps.
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <iostream>

#include "core/rng.h"
#include "data/loader.h"
#include "moe/language_model.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "nn/optim/schedule.h"
#include "train/sample.h"

using namespace switchyard;

void train_and_write(const std::vector<std::filesystem::path>& paths, std::int64_t steps) {
  const std::int64_t batch = 8, context = 128;

  // Text: a list of documents, as tokens in a file that is then mapped into memory.
  const data::Corpus corpus = paths.empty() ? data::Corpus::embedded() : data::Corpus::from_paths(paths);
  const auto tokenizer = data::make_tokenizer("bytes");
  const auto token_file = std::filesystem::temp_directory_path() / ("from_scratch-" + std::to_string(getpid()));
  data::write_token_file(token_file, corpus, tokenizer);
  data::Loader loader(data::TokenFile::open(token_file), {.batch = batch, .context = context, .seed = 1});
  std::filesystem::remove(token_file);  // the mapping keeps it

  // Model: experts in the attention (SwitchHead) and in the feed-forward (sigma-MoE).
  moe::LanguageModelConfig config;
  config.vocabulary_size = tokenizer->vocabulary_size();
  config.width = 128;
  config.layers = 3;
  config.attention = {.heads = 2, .head_width = 32, .experts = 4, .k = 2};
  config.feedforward = {.experts = 8, .expert_width = 64, .k = 2, .entropy_regularizer = 1e-3};
  seed_all(1);
  const auto model = moe::build_language_model(config);

  nn::AdamW optimizer(nn::parameter_groups(model->named_parameters(), /*weight_decay=*/0.01), {});
  const nn::Schedule schedule = nn::schedule::cosine(/*warmup=*/steps / 10, steps);

  for (std::int64_t step = 0; step < steps; ++step) {
    const data::Batch tokens = loader.next();
    const nn::LanguageModelLoss loss = model->loss(tokens.inputs, tokens.targets);
    optimizer.zero_grad();
    loss.total.backward();
    const nn::ClipResult clipped = nn::clip_gradients(model->parameters(), /*max_norm=*/0.25);
    optimizer.set_learning_rate(3e-3 * schedule(step));
    optimizer.step(clipped.factor);
    default_generator(Device::cpu()).end_step();
    if ((step + 1) % 10 == 0) {
      const double nats = loss.cross_entropy.item<double>();
      std::printf("step %lld  loss %.4f  %.3f bits/byte\n", static_cast<long long>(step + 1), nats, nats / std::log(2));
    }
  }
  const std::string text = train::generate_text(*model, *tokenizer, "", {.count = 200, .temperature = 0.8}, 1);
  std::cout << train::printable(text) << std::endl;
}

int main(int argc, char** argv) {
  try {
    const char* wanted = std::getenv("STEPS");
    const int steps = wanted ? std::atoi(wanted) : 300;
    check(steps > 0, "STEPS: expected a whole number, at least 1, got ", wanted);
    train_and_write({argv + 1, argv + argc}, steps);
  } catch (const std::exception& error) {
    std::cerr << "from_scratch: " << error.what() << std::endl;
    return 1;
  }
}
