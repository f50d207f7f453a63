#include "train/training_state.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"
#include "core/rng.h"
#include "moe/language_model.h"
#include "nn/optim/clip.h"
#include "train/optimization.h"

namespace switchyard::train {
namespace {

/// Targets that count in the loss.
std::int64_t count_targets(const Tensor& targets) {
  std::int64_t count = 0;
  for (const std::int64_t target : targets.to_vector<std::int64_t>()) count += target != data::kIgnoreIndex;
  return count;
}

/// Writes a memory's new contents over the old ones where the shapes allow it: a graph reads and writes them in one
/// place.
void keep_in_place(const std::vector<Tensor>& past, std::vector<Tensor>& present) {
  for (std::size_t layer = 0; layer < past.size(); ++layer) {
    if (past[layer].shape() != present[layer].shape()) continue;
    past[layer].copy_from(present[layer]);
    present[layer] = past[layer];
  }
}

std::string memory_name(std::size_t part, std::size_t layer) {
  return "memory." + std::to_string(part) + "." + std::to_string(layer);
}

}  // namespace

std::unique_ptr<nn::LanguageModel> build_model(const Config& config, const data::Tokenizer& tokenizer) {
  moe::LanguageModelConfig model_config = config.model;
  if (model_config.vocabulary_size == 0) model_config.vocabulary_size = tokenizer.vocabulary_size();
  check(model_config.vocabulary_size >= tokenizer.vocabulary_size(),
        "config: model.vocabulary_size: ", model_config.vocabulary_size,
        " is too small, expected 0 or at least the tokenizer's ", tokenizer.vocabulary_size());
  Generator weights(static_cast<std::uint64_t>(config.training.seed));
  auto model = moe::build_language_model(model_config, weights);
  model->to(config.dtype());
  model->to(Device::parse(config.training.device));
  model->set_recompute(config.training.recompute);
  return model;
}

data::Loader build_loader(const Config& config, const data::TokenFile& tokens) {
  data::LoaderOptions options;
  options.batch = config.training.batch;
  options.context = config.model.context;
  options.sampling =
      config.data.mode == DataMode::random ? data::Sampling::random_windows : data::Sampling::contiguous_streams;
  options.respect_documents = config.data.respect_documents;
  options.seed = static_cast<std::uint64_t>(config.training.seed);
  return {tokens, options};
}

NamedTensors state_tensors(const nn::Module& model) {
  NamedTensors tensors;
  for (const nn::NamedParameter& p : model.named_parameters()) tensors.emplace_back(p.name, p.variable.data());
  for (const nn::NamedBuffer& b : model.named_buffers())
    if (b.tensor.defined()) tensors.emplace_back(b.name, b.tensor);
  return tensors;
}

bool StepRecord::finite() const { return std::isfinite(loss) && std::isfinite(gradient_norm); }

TrainingState::TrainingState(const Config& config, const TokenizedText& text)
    : config_(config),
      device_(Device::parse(config.training.device)),
      loader_(build_loader(config, text.training)),
      model_(build_model(config, *text.tokenizer)),
      optimizer_(build_optimizer(config.optimizer, model_->named_parameters())),
      schedule_(build_schedule(config.optimizer.schedule, config.training.steps)),
      inputs_(Tensor::zeros({config.training.batch, config.model.context}, DType::i64, device_)),
      targets_(inputs_.clone()),
      shares_(Tensor::zeros({config.training.gradient_accumulation}, DType::f64, device_)),
      record_(Tensor::zeros({2}, DType::f64, device_)),
      records_(Tensor::zeros({kMostRecords, 2}, DType::f64, device_)),
      graph_wanted_(device_.is_cuda()) {
  seed_all(static_cast<std::uint64_t>(config.training.seed));
  if (config.model.memory > 0)
    memories_.resize(static_cast<std::size_t>(config.training.gradient_accumulation), {config.model.memory, {}});
}

std::int64_t TrainingState::tokens_per_step() const { return config_.training.batch * config_.model.context; }

void TrainingState::clear_memories() {
  for (nn::SegmentMemory& memory : memories_) memory.clear();
}

bool TrainingState::memories_full() const {
  return std::ranges::all_of(memories_, [](const nn::SegmentMemory& memory) {
    return !memory.inputs.empty() && memory.inputs[0].size(1) == memory.length;
  });
}

void TrainingState::load(const data::Batch& batch) {
  if (batch.restarts) clear_memories();
  const std::int64_t parts = shares_.numel(), rows = batch.targets.size(0) / parts;
  std::vector<double> shares;
  for (std::int64_t part = 0; part < parts; ++part)
    shares.push_back(static_cast<double>(count_targets(batch.targets.slice(0, part * rows, (part + 1) * rows))));
  const double all = std::max(std::accumulate(shares.begin(), shares.end(), 0.0), 1.0);
  for (double& share : shares) share /= all;
  inputs_.copy_from(batch.inputs);
  targets_.copy_from(batch.targets);
  shares_.copy_from(Tensor::from(shares, {parts}));
}

void TrainingState::accumulate_gradients(std::int64_t part) {
  const std::int64_t rows = inputs_.size(0) / shares_.numel(), begin = part * rows, end = begin + rows;
  nn::SegmentMemory* memory = memories_.empty() ? nullptr : &memories_[static_cast<std::size_t>(part)];
  const std::vector<Tensor> past = memory ? memory->inputs : std::vector<Tensor>();
  const nn::LanguageModelLoss result =
      model_->loss(inputs_.slice(0, begin, end), targets_.slice(0, begin, end), data::kIgnoreIndex, memory);
  const Tensor share = shares_.slice(0, part, part + 1), loss = record_.slice(0, 0, 1);
  result.total.backward(share.to(result.total.dtype()).reshape(result.total.shape()));
  ops::accumulate(loss, ops::multiply(share, result.cross_entropy.data().to(DType::f64)));
  if (memory) keep_in_place(past, memory->inputs);
}

void TrainingState::run_step() {
  optimizer_->zero_grad();
  record_.fill(0);
  for (std::int64_t part = 0; part < shares_.numel(); ++part) accumulate_gradients(part);
  const nn::ClipResult clipped = nn::clip_gradients(model_->parameters(), config_.training.clip);
  record_.slice(0, 1, 2).copy_from(clipped.norm);
  optimizer_->step(clipped.factor);
  default_generator(device_).end_step();
}

void TrainingState::use_graph(bool on) {
  graph_wanted_ = on && device_.is_cuda();
  if (graph_wanted_) return;
  graph_.reset();
  graph_memories_.clear();
}

void TrainingState::record_graph() {
  optimizer_->zero_grad();  // the graph makes gradients of its own
  graph_memories_ = memories_;
  graph_.emplace(device_, [this] { run_step(); });
}

void TrainingState::replay_graph() {
  for (std::size_t part = 0; part < memories_.size(); ++part)
    for (std::size_t layer = 0; layer < memories_[part].inputs.size(); ++layer) {
      const Tensor &now = memories_[part].inputs[layer], &expected = graph_memories_[part].inputs[layer];
      if (now.raw() != expected.raw()) expected.copy_from(now);  // after a restart of the text, or of the run
    }
  memories_ = graph_memories_;
  graph_->replay();
}

void TrainingState::advance() {
  check(!records_full(), "TrainingState: take_records() is due");
  load(loader_.next());
  optimizer_->set_learning_rate(config_.optimizer.learning_rate * schedule_(step_));
  const bool alike = memories_full();
  if (graph_wanted_ && !graph_ && alike && ordinary_steps_ >= kOrdinarySteps) record_graph();
  replaying_ = graph_ && alike;
  if (replaying_) {
    replay_graph();
  } else {
    run_step();
    ordinary_steps_ += alike;
  }
  records_.select(0, pending_).copy_from(record_);
  ++step_;
  ++pending_;
}

std::vector<StepRecord> TrainingState::take_records() {
  const auto values = records_.slice(0, 0, pending_).to_vector<double>();
  std::vector<StepRecord> records;
  for (std::int64_t i = 0; i < pending_; ++i) {
    const auto at = static_cast<std::size_t>(2 * i);
    records.push_back({step_ - pending_ + i + 1, values[at], values[at + 1]});
  }
  pending_ = 0;
  return records;
}

NamedTensors TrainingState::memory_tensors() const {
  NamedTensors tensors;
  for (std::size_t part = 0; part < memories_.size(); ++part)
    for (std::size_t layer = 0; layer < memories_[part].inputs.size(); ++layer)
      tensors.emplace_back(memory_name(part, layer), memories_[part].inputs[layer]);
  return tensors;
}

Checkpoint TrainingState::snapshot() const {
  Checkpoint checkpoint;
  checkpoint.step = step_;
  checkpoint.model = state_tensors(*model_);
  checkpoint.optimizer = optimizer_->state_tensors();
  for (auto& memory : memory_tensors()) checkpoint.optimizer.push_back(std::move(memory));
  checkpoint.state = {{"config", train::to_json(config_)},
                      {"loader", data::to_json(loader_.state())},
                      {"generator", train::to_json(default_generator(device_).state())}};
  return checkpoint;
}

void TrainingState::restore(const OpenCheckpoint& checkpoint) {
  if (holds_weights_only(checkpoint)) {
    load_tensors(checkpoint.model, state_tensors(*model_));
    optimizer_->refresh_masters();
    return;
  }
  // Read as a configuration: keys that are younger than the checkpoint have their defaults.
  const auto saved = train::to_json(config_from_json<Config>(state_section(checkpoint, "config")));
  check_continues(checkpoint, saved, train::to_json(config_));
  clear_memories();
  for (std::size_t part = 0; part < memories_.size(); ++part) {
    std::vector<Tensor>& inputs = memories_[part].inputs;
    while (checkpoint.optimizer.contains(memory_name(part, inputs.size()))) {
      const std::string name = memory_name(part, inputs.size());
      inputs.push_back(Tensor::empty(checkpoint.optimizer.shape(name), config_.dtype(), device_));
    }
  }
  load_tensors(checkpoint.model, state_tensors(*model_));
  NamedTensors optimizer = optimizer_->state_tensors();
  for (auto& memory : memory_tensors()) optimizer.push_back(std::move(memory));
  load_tensors(checkpoint.optimizer, optimizer);

  loader_.restore(data::loader_state_from_json(state_section(checkpoint, "loader")));
  default_generator(device_).set_state(saved_generator(checkpoint));
  step_ = checkpoint.step;
  pending_ = 0;
}

std::string TrainingState::nonfinite_parameter() const {
  for (const nn::NamedParameter& p : model_->named_parameters())
    if (ops::count_nonfinite(p.variable.data()).item<std::int64_t>() > 0) return p.name;
  return {};
}

}  // namespace switchyard::train
