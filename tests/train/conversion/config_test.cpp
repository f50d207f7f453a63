#include "train/conversion/config.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

#include "tests/support/errors.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

ConversionConfig parsed(const char* text) { return config_from_json<ConversionConfig>(json::parse(text).as_object()); }

TEST(ConversionConfig, ValuesArriveWhereTheyBelong) {
  const ConversionConfig config = parsed(R"({"model": "runs/a", "phases": ["sparsify", "experts"],
    "sparsify": {"measure": "l1", "schedule": "constant", "optimizer": {"kind": "sgd", "schedule": {"kind": "linear"}}},
    "routers": {"kind": "moefication", "loss": "huber", "optimizer": {"learning_rate": 0.5}}})");
  EXPECT_EQ(config.model, "runs/a");
  EXPECT_EQ(config.phases, (std::vector<PhaseKind>{PhaseKind::sparsify, PhaseKind::experts}));
  EXPECT_EQ(config.sparsify.measure, moe::SparsityMeasure::l1);
  EXPECT_EQ(config.sparsify.schedule, WeightSchedule::constant);
  EXPECT_EQ(config.sparsify.optimizer.kind, OptimizerKind::sgd);
  EXPECT_EQ(config.sparsify.optimizer.schedule.kind, ScheduleKind::linear);
  EXPECT_EQ(config.routers.kind, RouterKind::moefication);
  EXPECT_EQ(config.routers.loss, RegressionLoss::huber);
  EXPECT_EQ(config.routers.optimizer.learning_rate, 0.5);
}

TEST(ConversionConfig, WhatDoesNotFitIsNamed) {
  EXPECT_ERROR(parsed(R"({"phases": []})"), "config: phases: is empty, expected at least one phase");
  EXPECT_ERROR(parsed(R"({"phases": ["experts", "sparsify"]})"),
               "config: phases: expected some of projections, sparsify, ");
  EXPECT_ERROR(parsed(R"({"phases": ["experts", "experts"]})"), "config: phases: ");
  EXPECT_ERROR(parsed(R"({"phases": ["polish"]})"), "config: phases");
  EXPECT_ERROR(parsed(R"({"phases": ["experts", "adapt"]})"), "config: phases: adapt needs routers");
  EXPECT_ERROR(parsed(R"({"phases": ["adapt"], "routers": {"kind": "moefication"}})"),
               "config: routers.kind is moefication, expected norm: phase adapt");
  EXPECT_ERROR(parsed(R"({"phases": ["adapt"], "adapt": {"taus": []}})"), "config: adapt.taus: is empty");
  EXPECT_ERROR(parsed(R"({"experts": {"expert_width": 0}})"), "config: experts.expert_width: 0 is out of range");
  EXPECT_ERROR(parsed(R"({"sparsify": {"optimizer": {"learning_rate": 0}}})"),
               "config: sparsify.optimizer.learning_rate: 0 trains nothing");
  EXPECT_ERROR(
      parsed(R"({"routers": {"steps": 5, "optimizer": {"schedule": {"warmup_steps": 6}}}})"),
      "config: routers.optimizer.schedule.warmup_steps: 6 is more than routers.steps 5, expected at most that");
}

}  // namespace
}  // namespace switchyard::train
