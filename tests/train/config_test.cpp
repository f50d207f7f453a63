#include "train/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <limits>

#include "tests/support/temporary_folder.h"
#include "train/classifier_config.h"
#include "train/conversion/conversion.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;

namespace json = boost::json;
namespace fs = std::filesystem;

std::vector<fs::path> shipped_configs() {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(fs::path(SWITCHYARD_SOURCE_DIR) / "configs"))
    if (entry.path().extension() == ".json") paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

TEST(Config, EveryShippedFileLoads) {
  const auto paths = shipped_configs();
  EXPECT_GE(paths.size(), 19u);
  for (const fs::path& path : paths) {
    const boost::json::object values = load_config_object(path, {});
    if (is_conversion_config(values)) {
      const ConversionConfig config = load_config<ConversionConfig>(path);
      EXPECT_EQ(to_json(config_from_json<ConversionConfig>(to_json(config))), to_json(config)) << path;
    } else if (is_classifier_config(values)) {
      const ClassifierConfig config = load_config<ClassifierConfig>(path);
      EXPECT_EQ(config.output.name, path.stem().string());
      EXPECT_EQ(to_json(config_from_json<ClassifierConfig>(to_json(config))), to_json(config)) << path;
    } else {
      const Config config = load_config<Config>(path);
      EXPECT_EQ(config.output.name, path.stem().string());
      EXPECT_EQ(to_json(config_from_json<Config>(to_json(config))), to_json(config)) << path;
    }
  }
}

/// Parameters of a model without biases in attention and feedforward, counted from the papers' formulas.
std::int64_t parameters(const Config& config) {
  const moe::LanguageModelConfig& model = config.model;
  const std::int64_t d = model.width, heads = model.attention.heads, e = model.attention.experts;
  const std::int64_t inner = heads * moe::head_width(model);
  const bool experts = model.attention.kind == moe::AttentionKind::switchhead;
  const std::int64_t attention = experts ? (2 + 2 * e) * d * inner + 2 * heads * e * d : 4 * d * inner;
  const std::int64_t positions = model.position == moe::PositionKind::xl ? d * inner : 0;
  const std::int64_t router =
      model.feedforward.kind == moe::FeedForwardKind::sigma_moe ? model.feedforward.experts * d : 0;
  const std::int64_t vocabulary =
      config.data.tokenizer.kind == TokenizerKind::bytes ? 256 : config.data.tokenizer.vocabulary_size;
  return model.layers * (attention + positions + 2 * d * moe::feedforward_width(model) + router + 4 * d) +
         2 * vocabulary * d + 2 * d;
}

// The papers compare models of equal size; dense models are the yardstick.
TEST(Config, ShippedModelsMatchTheDenseModelOfTheirClass) {
  const auto count = [](const std::string& name) {
    return static_cast<double>(
        parameters(load_config<Config>(fs::path(SWITCHYARD_SOURCE_DIR) / "configs" / (name + ".json"))));
  };
  struct Row {
    std::string dense, other;
    double within;
  };
  for (const Row& row : std::vector<Row>{{"dense-47m-xl", "dense-47m-xl-2-heads", 1e-3},
                                         {"dense-47m-xl", "switchhead-47m-xl", 1e-3},
                                         {"dense-47m-xl", "switchall-47m-xl", 1e-2},
                                         {"dense-47m-xl", "switchall-47m-xl-wikitext103", 1e-2},
                                         {"dense-47m-rope", "switchhead-47m-rope", 1e-3},
                                         {"dense-262m-xl", "dense-262m-xl-4-heads", 1e-3},
                                         {"dense-262m-xl", "switchhead-262m-xl", 1e-3},
                                         {"dense-262m-xl", "switchhead-262m-xl-2-heads", 1e-3},
                                         {"dense-262m-xl", "switchall-262m-xl", 2e-2},
                                         {"dense-262m-rope", "switchhead-262m-rope", 1e-3},
                                         {"dense-41m-xl-enwik8", "switchhead-41m-xl-enwik8", 2e-3}}) {
    EXPECT_NEAR(count(row.other) / count(row.dense), 1.0, row.within) << row.other;
  }
  EXPECT_NEAR(count("english-dense-38m"), 38.0e6, 0.05e6);
  EXPECT_NEAR(count("english-switchall-39m"), 39.5e6, 0.05e6);
}

TEST(Config, EmptyObjectGivesTheDefaults) {
  EXPECT_EQ(to_json(parse_config<Config>("{}", "c.json")), to_json(Config{}));
}

TEST(Config, EveryKeyIsReadAndWritten) {
  Config config;
  const Schema schema = describe(config);
  EXPECT_GE(schema.fields().size(), 70u);
  for (const SchemaField& field : schema.fields()) {
    const json::value before = field.write();
    field.read(before);
    EXPECT_EQ(field.write(), before) << field.path;
    EXPECT_FALSE(field.meaning.empty()) << field.path;
    EXPECT_NE(config_help<Config>().find(std::string(field.path.substr(field.path.rfind('.') + 1)) + " ("),
              std::string::npos)
        << field.path;
  }
}

TEST(Config, ValuesArriveWhereTheyBelong) {
  const Config config = parse_config<Config>(R"({
    "model": {"width": 96, "layers": 3, "position": "none", "tie_embeddings": true,
              "attention": {"kind": "switchhead", "heads": 3, "experts": 5, "k": 3, "experts_on": ["q", "o"]},
              "feedforward": {"kind": "glu", "activation": "silu", "width_multiplier": 2.5}},
    "data": {"files": ["a", "b"], "tokenizer": {"kind": "sentencepiece", "vocabulary_size": 1e3}},
    "training": {"dtype": "bf16", "seed": 9223372036854775807},
    "optimizer": {"learning_rate": 0.1, "schedule": {"kind": "linear", "warmup_steps": 7}}
  })",
                                             "c.json");
  EXPECT_EQ(config.model.width, 96);
  EXPECT_EQ(config.model.position, moe::PositionKind::none);
  EXPECT_TRUE(config.model.tie_embeddings);
  EXPECT_EQ(moe::head_width(config.model), 32);
  EXPECT_EQ(moe::rotated_width(config.model), 0);
  EXPECT_EQ(moe::feedforward_width(config.model), 240);
  EXPECT_EQ(config.model.feedforward.activation, ops::Activation::silu);
  EXPECT_TRUE(config.model.attention.has_experts(moe::ProjectionKind::query));
  EXPECT_FALSE(config.model.attention.has_experts(moe::ProjectionKind::value));
  EXPECT_EQ(config.data.files, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(config.data.tokenizer.vocabulary_size, 1000);
  EXPECT_EQ(config.dtype(), DType::bf16);
  EXPECT_EQ(config.training.seed, std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(config.optimizer.learning_rate, 0.1);
  EXPECT_EQ(config.optimizer.schedule.kind, ScheduleKind::linear);
}

TEST(Config, OverridesWinOverTheFile) {
  const Config config = parse_config<Config>(
      R"({"model": {"layers": 2}})", "c.json",
      {"model.layers=3", "model.layers=4", "model.norm=rmsnorm", "optimizer.schedule.kind=\"linear\"",
       "data.files=[\"x=y.txt\"]", "output.sample_prompt=To be, or", "training.recompute=true"});
  EXPECT_EQ(config.model.layers, 4);
  EXPECT_EQ(config.model.norm, moe::NormKind::rmsnorm);
  EXPECT_EQ(config.optimizer.schedule.kind, ScheduleKind::linear);
  EXPECT_EQ(config.data.files, std::vector<std::string>{"x=y.txt"});
  EXPECT_EQ(config.output.sample_prompt, "To be, or");
  EXPECT_TRUE(config.training.recompute);
}

TEST(Config, OneExpertNeedsNoFittingK) {
  EXPECT_EQ(parse_config<Config>(R"({"model": {"attention": {"experts": 1}}})", "c.json").model.attention.k, 2);
}

TEST(Config, NameComesFromTheFile) {
  const TemporaryFolder folder;
  write_bytes(folder / "my model.json", "{}");
  EXPECT_EQ(load_config<Config>(folder / "my model.json").output.name, "my-model");
  EXPECT_EQ(load_config<Config>(folder / "my model.json", {"output.name=other"}).output.name, "other");
}

TEST(JsonText, NumbersSurviveWritingAndReadingBitForBit) {
  std::uint64_t bits = 1;
  for (int round = 0; round < 20000; ++round) {
    bits = bits * 6364136223846793005u + 1442695040888963407u;
    const double value = std::bit_cast<double>(bits);
    if (!std::isfinite(value)) continue;
    const json::value read = parse_json(pretty_json(json::value{{"x", value}}), "x");
    EXPECT_EQ(std::bit_cast<std::uint64_t>(read.at("x").get_double()), bits) << value;
  }
  for (const std::int64_t value : {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()})
    EXPECT_EQ(parse_json(pretty_json(json::value(value)), "x").get_int64(), value);
}

TEST(JsonText, PrettyTextReadsBackEqual) {
  const json::value value = {{"empty", json::object{}},
                             {"list", json::array{1, "two", nullptr, true}},
                             {"nested", json::array{json::object{{"a", 1}}, json::array{}}},
                             {"text", "quote \" backslash \\ break \n snowman \xe2\x98\x83"}};
  EXPECT_EQ(parse_json(pretty_json(value), "x"), value);
}

}  // namespace
}  // namespace switchyard::train
