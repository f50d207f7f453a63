#include "train/training_state.h"

#include <cmath>

#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"
#include "core/rng.h"
#include "moe/language_model.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "nn/optim/sgd.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

json::object to_json(const GeneratorState& state) { return {{"seed", state.seed}, {"position", state.position}}; }

std::uint64_t number_at(const json::object& object, const char* key, const std::filesystem::path& path) {
  const json::value* value = object.if_contains(key);
  boost::system::error_code error;
  const std::uint64_t number = value ? value->to_number<std::uint64_t>(error) : 0;
  check(value && !error, "checkpoint: ", path.string(), ": its state has no number '", key, "'");
  return number;
}

const json::object& object_at(const json::object& object, const char* key, const std::filesystem::path& path) {
  const json::value* value = object.if_contains(key);
  check(value && value->is_object(), "checkpoint: ", path.string(), ": its state has no section '", key, "'");
  return value->get_object();
}

/// Targets that count in the loss.
std::int64_t count_targets(const Tensor& targets) {
  std::int64_t count = 0;
  for (const std::int64_t target : targets.to_vector<std::int64_t>()) count += target != data::kIgnoreIndex;
  return count;
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

std::unique_ptr<nn::Optimizer> build_optimizer(const Config& config, const nn::LanguageModel& model) {
  const OptimizerConfig& options = config.optimizer;
  const auto groups = nn::parameter_groups(model.named_parameters(), options.weight_decay, options.decay_all);
  if (options.kind == OptimizerKind::sgd)
    return std::make_unique<nn::Sgd>(groups, nn::SgdOptions{options.learning_rate, options.momentum});
  return std::make_unique<nn::AdamW>(
      groups, nn::AdamWOptions{options.learning_rate, options.beta1, options.beta2, options.epsilon});
}

nn::Schedule build_schedule(const Config& config) {
  const ScheduleConfig& schedule = config.optimizer.schedule;
  const std::int64_t warmup = schedule.warmup_steps, steps = config.training.steps;
  switch (schedule.kind) {
    case ScheduleKind::constant: return nn::schedule::constant(warmup);
    case ScheduleKind::linear: return nn::schedule::linear(warmup, steps, schedule.final_fraction);
    case ScheduleKind::cosine: return nn::schedule::cosine(warmup, steps, schedule.final_fraction);
    case ScheduleKind::switchhead_warmup_then_cosine: return nn::schedule::switchhead_warmup_then_cosine(warmup, steps);
  }
  fail("config: optimizer.schedule.kind: unknown");
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
      optimizer_(build_optimizer(config, *model_)),
      schedule_(build_schedule(config)),
      records_(Tensor::zeros({kMostRecords, 2}, DType::f64, device_)) {
  seed_all(static_cast<std::uint64_t>(config.training.seed));
  if (config.model.memory > 0)
    memories_.resize(static_cast<std::size_t>(config.training.gradient_accumulation), {config.model.memory, {}});
}

std::int64_t TrainingState::tokens_per_step() const { return config_.training.batch * config_.model.context; }

void TrainingState::clear_memories() {
  for (nn::SegmentMemory& memory : memories_) memory.clear();
}

void TrainingState::accumulate_gradients(const data::Batch& batch, std::int64_t part, double share,
                                         const Tensor& loss) {
  nn::SegmentMemory* memory = memories_.empty() ? nullptr : &memories_[static_cast<std::size_t>(part)];
  const nn::LanguageModelLoss result =
      model_->loss(batch.inputs.to(device_), batch.targets.to(device_), data::kIgnoreIndex, memory);
  result.total.backward(Tensor::full(result.total.shape(), share, result.total.dtype(), device_));
  ops::accumulate(loss, result.cross_entropy.data(), share);
}

void TrainingState::advance() {
  check(!records_full(), "TrainingState: take_records() is due");
  const data::Batch batch = loader_.next();
  if (batch.restarts) clear_memories();
  optimizer_->zero_grad();
  const Tensor record = records_.select(0, pending_);
  record.fill(0);
  const Tensor loss = record.slice(0, 0, 1);
  const std::int64_t parts = config_.training.gradient_accumulation, rows = config_.training.batch / parts;
  const auto targets = static_cast<double>(std::max<std::int64_t>(count_targets(batch.targets), 1));
  for (std::int64_t part = 0; part < parts; ++part) {
    data::Batch rows_of_part;
    rows_of_part.inputs = batch.inputs.slice(0, part * rows, (part + 1) * rows).contiguous();
    rows_of_part.targets = batch.targets.slice(0, part * rows, (part + 1) * rows).contiguous();
    const double share = static_cast<double>(count_targets(rows_of_part.targets)) / targets;
    accumulate_gradients(rows_of_part, part, share, loss);
  }
  const nn::ClipResult clipped = nn::clip_gradients(model_->parameters(), config_.training.clip);
  record.slice(0, 1, 2).copy_from(clipped.norm);
  optimizer_->set_learning_rate(config_.optimizer.learning_rate * schedule_(step_));
  optimizer_->step(clipped.factor);
  default_generator(device_).end_step();
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
                      {"generator", to_json(default_generator(device_).state())}};
  return checkpoint;
}

void TrainingState::restore(const OpenCheckpoint& checkpoint) {
  const json::object& state = checkpoint.state;
  const json::object& saved = object_at(state, "config", checkpoint.path);
  const json::object present = train::to_json(config_);
  for (const char* section : {"model", "data"})
    check_same_config(checkpoint.path, section, object_at(saved, section, checkpoint.path), present.at(section));

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

  const json::value* loader = state.if_contains("loader");
  check(loader, "checkpoint: ", checkpoint.path.string(), ": its state has no section 'loader'");
  loader_.restore(data::loader_state_from_json(*loader));
  const json::object& generator = object_at(state, "generator", checkpoint.path);
  default_generator(device_).set_state(
      {number_at(generator, "seed", checkpoint.path), number_at(generator, "position", checkpoint.path)});
  step_ = checkpoint.step;
  pending_ = 0;
}

std::string TrainingState::nonfinite_parameter() const {
  for (const nn::NamedParameter& p : model_->named_parameters())
    if (ops::count_nonfinite(p.variable.data()).item<std::int64_t>() > 0) return p.name;
  return {};
}

}  // namespace switchyard::train
