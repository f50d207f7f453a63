#include "train/tasks/language_model_task.h"

#include <algorithm>
#include <boost/json/array.hpp>

#include "autograd/grad_mode.h"
#include "train/evaluation.h"
#include "train/run_folder.h"
#include "train/training_state.h"

namespace switchyard::train {
namespace {

/// The run's model under a config in which the options stand.
TrainedModel load(const std::filesystem::path& run, const TaskOptions& options,
                  const std::function<void(const std::string&)>& report) {
  TrainedModel trained = load_trained_model(run, options.device, report);
  trained.config.training.batch /= trained.config.training.gradient_accumulation;
  trained.config.training.gradient_accumulation = 1;
  if (options.batch > 0) trained.config.training.batch = options.batch;
  trained.config.training.seed = static_cast<std::int64_t>(options.seed);
  return trained;
}

}  // namespace

LanguageModelTask::LanguageModelTask(const std::filesystem::path& run, const TaskOptions& options,
                                     const std::function<void(const std::string&)>& report)
    : trained_(load(run, options, report)),
      text_(prepare_text(trained_.config, RunFolder::text_path(run), report)),
      loader_(build_loader(trained_.config, text_.training)),
      memory_{trained_.config.model.memory, {}} {}

data::Batch LanguageModelTask::next_batch() {
  data::Batch batch = loader_.next();
  if (batch.restarts) memory_.clear();
  batch.inputs = batch.inputs.to(device());
  batch.targets = batch.targets.to(device());
  return batch;
}

Variable LanguageModelTask::training_loss() {
  const data::Batch batch = next_batch();
  return model().loss(batch.inputs, batch.targets, data::kIgnoreIndex, memory()).total;
}

void LanguageModelTask::run_training_batch() {
  const NoGradGuard no_grad;
  const bool was_training = model().training();
  model().eval();
  model().hidden(next_batch().inputs, memory());
  model().train(was_training);
}

Score LanguageModelTask::evaluate() {
  EvaluationOptions options;
  options.windows = trained_.config.data.validation_windows;
  options.batch = trained_.config.training.batch;
  options.context = trained_.config.model.context;
  options.memory = trained_.config.model.memory;
  const Evaluation result = train::evaluate(model(), text_.validation, options);
  return {result.nats_per_token, std::nullopt, result.tokens};
}

Pass LanguageModelTask::validation_pass() {
  const data::Batch batch =
      data::validation_windows(text_.validation, trained_.config.training.batch, trained_.config.model.context);
  const Tensor inputs = batch.inputs.to(device()), targets = batch.targets.to(device());
  const auto run = [this, inputs, targets] {
    const NoGradGuard no_grad;
    return model().loss(inputs, targets).cross_entropy.data();
  };
  return {run, inputs.numel()};
}

std::optional<Pass> LanguageModelTask::decoding_pass(std::int64_t tokens) {
  const data::Batch window =
      data::validation_windows(text_.validation, 1, std::min(tokens, trained_.config.model.context));
  const Tensor text = window.inputs.to(device());
  const auto run = [this, text] {
    nn::DecodingState state;
    Tensor logits;
    for (std::int64_t t = 0; t < text.size(1); ++t) logits = model().decode(text.slice(1, t, t + 1), state);
    return logits;
  };
  return Pass{run, text.numel()};
}

Exhibit LanguageModelTask::exhibit() {
  const std::int64_t context = trained_.config.model.context;
  const std::int64_t available = std::min(Exhibit::kTokens, text_.validation.size());
  const std::int64_t rows = std::max<std::int64_t>(available / context, 1);
  std::vector<std::int64_t> ids(static_cast<std::size_t>(rows * context));
  text_.validation.read(0, rows * context, ids.data());
  const Tensor windows = Tensor::from(ids, {rows, context}).to(device());
  const auto run = [this, windows] {
    const NoGradGuard no_grad;
    return model().hidden(windows).output.data();
  };
  const auto describe = [ids, tokenizer = trained_.tokenizer](const std::vector<double>& macs) {
    boost::json::array tokens;
    const std::vector<std::string> texts = token_texts(*tokenizer, ids);
    for (std::size_t i = 0; i < ids.size(); ++i) tokens.push_back({{"text", texts[i]}, {"macs", macs[i]}});
    return boost::json::object{{"kind", "text"}, {"tokens", std::move(tokens)}};
  };
  return {{run, rows * context}, describe};
}

std::int64_t LanguageModelTask::tokens_per_batch() const {
  return trained_.config.training.batch * trained_.config.model.context;
}

boost::json::object LanguageModelTask::state() const { return {{"loader", data::to_json(loader_.state())}}; }

void LanguageModelTask::restore(const boost::json::object& state) {
  const boost::json::value* loader = state.if_contains("loader");
  check(loader != nullptr, "LanguageModelTask: the state to restore has no \"loader\"");
  loader_.restore(data::loader_state_from_json(*loader));
  memory_.clear();
}

}  // namespace switchyard::train
