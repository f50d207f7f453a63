#include "train/conversion/config.h"

#include <algorithm>

#include "core/error.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

constexpr std::int64_t kManySteps = 1'000'000'000;

void describe_training(Schema& schema, ConversionTrainingConfig& training) {
  schema.section("training", "what all phases share");
  schema.integer("batch", training.batch, 0, 1 << 20,
                 "windows or examples per step; 0: as many as the model's run had");
  schema.integer("seed", training.seed, 0, INT64_MAX, "of the data's order, dropout, clusters and new weights");
  schema.number("clip", training.clip, 0, 1e9, "longest gradient (L2 norm over all parameters); 0: any");
  schema.integer("log_every", training.log_every, 1, kManySteps, "steps between progress and metrics lines");
  schema.integer("checkpoint_every", training.checkpoint_every, 0, kManySteps,
                 "steps between checkpoints within a phase; 0: none, a phase that is stopped starts over");
}

void describe_projections(Schema& schema, ProjectionsConfig& projections) {
  using ops::Activation;
  schema.section("projections", "linear maps of attention replaced by two-layer perceptrons that learn to do the same");
  schema.integer("steps", projections.steps, 1, kManySteps, "optimiser steps");
  schema.choice_list("kinds", projections.kinds, "which: of queries, keys, values and the output");
  schema.number("flops_factor", projections.flops_factor, 0, 1e6,
                "multiply-adds of the perceptron / of the linear map");
  schema.choice("activation", projections.activation,
                {Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu}, "of the perceptron");
  schema.boolean("residual", projections.residual, "add the perceptron's input to its result");
  schema.integer("expert_width", projections.expert_width, 1, 1 << 20,
                 "neurons per expert in phase experts; the perceptron's width is rounded down to a multiple");
  schema.integer("router_hidden", projections.router_hidden, 1, 1 << 16, "neurons of the perceptron's router");
  describe_optimizer(schema, "projections.optimizer", projections.optimizer);
}

void describe_sparsify(Schema& schema, SparsifyConfig& sparsify) {
  schema.section("sparsify", "fine-tuning with a penalty on neurons that are active");
  schema.integer("steps", sparsify.steps, 1, kManySteps, "optimiser steps");
  schema.choice("measure", sparsify.measure, "what is penalised, per token: (sum |a|)^2 / sum a^2, or sum |a|");
  schema.number("weight", sparsify.weight, 0, 1e9, "of the penalty, a mean over the feed-forwards, beside the loss");
  schema.number("projections_weight", sparsify.projections_weight, 0, 1e9,
                "of the same penalty, a mean over the perceptrons that stand in for projections");
  schema.choice("schedule", sparsify.schedule, "the weight from the first step on, or rising to it over all steps");
  schema.number("displacement", sparsify.displacement, -1e9, 1e9,
                "activations other than relu: penalised is how far their arguments lie above this");
  schema.boolean("swap_to_relu", sparsify.swap_to_relu, "make relu the activation before the first step");
  describe_optimizer(schema, "sparsify.optimizer", sparsify.optimizer);
}

void describe_experts(Schema& schema, ExpertsConfig& experts) {
  schema.section("experts", "each feed-forward split into experts by clustering its neurons");
  schema.integer("expert_width", experts.expert_width, 1, 1 << 20,
                 "neurons per expert, a divisor of the feed-forward's width");
  schema.integer("restarts", experts.restarts, 1, 1000, "starts of k-means, of which the best result is kept");
}

void describe_routers(Schema& schema, RoutersConfig& routers) {
  schema.section("routers", "a small network per layer that tells which experts matter; the model stays as it is");
  schema.integer("steps", routers.steps, 1, kManySteps, "optimiser steps");
  schema.choice("kind", routers.kind,
                "norm: regression on the norm of each expert's output (D2DMoE); moefication: cross-entropy with each "
                "expert's share of the activations, for topk gates only");
  schema.integer("hidden", routers.hidden, 1, 1 << 16, "neurons of the router");
  schema.integer("tokens", routers.tokens, 1, 1 << 24,
                 "per step, at most: a batch that went through the model serves several steps");
  schema.choice("loss", routers.loss, "of kind norm");
  describe_optimizer(schema, "routers.optimizer", routers.optimizer);
}

void describe_adapt(Schema& schema, AdaptConfig& adapt) {
  schema.section("adapt", "the whole model, routers included, learns on while its tokens run only the experts chosen");
  schema.integer("steps", adapt.steps, 1, kManySteps, "optimiser steps");
  schema.number_list("taus", adapt.taus, 0, 1, "of the gates dynk_max, one a step in turn");
  describe_optimizer(schema, "adapt.optimizer", adapt.optimizer);
}

void validate_phases(const ConversionConfig& config) {
  check(!config.phases.empty(), "config: phases: is empty, expected at least one phase");
  for (std::size_t i = 1; i < config.phases.size(); ++i)
    check(config.phases[i - 1] < config.phases[i],
          "config: phases: expected some of projections, sparsify, experts, routers, adapt in this order, each once");
  if (!config.has(PhaseKind::adapt)) return;
  check(config.has(PhaseKind::routers) || !config.has(PhaseKind::experts),
        "config: phases: adapt needs routers, expected phase routers after experts");
  check(config.routers.kind == RouterKind::norm,
        "config: routers.kind is moefication, expected norm: phase adapt compares predicted norms");
  check(!config.adapt.taus.empty(), "config: adapt.taus: is empty, expected at least one tau");
}

}  // namespace

void validate(const ConversionConfig& config) {
  validate_phases(config);
  validate_optimizer("projections.optimizer", config.projections.optimizer, "projections.steps",
                     config.projections.steps);
  validate_optimizer("sparsify.optimizer", config.sparsify.optimizer, "sparsify.steps", config.sparsify.steps);
  validate_optimizer("routers.optimizer", config.routers.optimizer, "routers.steps", config.routers.steps);
  validate_optimizer("adapt.optimizer", config.adapt.optimizer, "adapt.steps", config.adapt.steps);
}

bool ConversionConfig::has(PhaseKind phase) const {
  return std::find(phases.begin(), phases.end(), phase) != phases.end();
}

Schema describe(ConversionConfig& config) {
  Schema schema;
  schema.text("model", config.model, "folder of the run, or of another conversion, to convert (convert --model)");
  schema.choice_list("phases", config.phases, "what is done, in this order; leave out what is not wanted");
  describe_training(schema, config.training);
  describe_projections(schema, config.projections);
  describe_sparsify(schema, config.sparsify);
  describe_experts(schema, config.experts);
  describe_routers(schema, config.routers);
  describe_adapt(schema, config.adapt);
  describe_sweep(schema, config.sweep);
  return schema;
}

}  // namespace switchyard::train
