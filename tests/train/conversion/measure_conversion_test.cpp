#include <gtest/gtest.h>

#include <boost/json/array.hpp>

#include "tests/train/conversion/converted_task.h"
#include "train/conversion/conversion.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

json::object quick_settings(const std::filesystem::path& model) {
  return {{"model", model.string()},
          {"phases", {"experts", "routers"}},
          {"experts", {{"expert_width", 4}}},
          {"routers", {{"steps", 2}, {"hidden", 8}}},
          {"sweep", {{"dynk_max", {0.5, 1}}, {"topk", {0.5}}, {"repeats", 0}}}};
}

/// Converts as `settings` say, measures, and returns what sweep.json holds and how many settings were measured.
std::pair<json::object, int> measured(const std::filesystem::path& folder, const json::object& settings) {
  int lines = 0;
  const auto count = [&](const std::string& line) { lines += line.starts_with("sweep: ") ? 1 : 0; };
  Conversion conversion(folder, config_from_json<ConversionConfig>(settings), "", count);
  EXPECT_TRUE(conversion.run([] { return false; }));
  conversion.measure();
  return {parse_json(testing::read_bytes(folder / "sweep.json"), "sweep").as_object(), lines};
}

TEST(MeasureConversion, MeasuresAnewOnlyWhereSettingsChanged) {
  DenseTask dense;
  const testing::TemporaryFolder folder;
  json::object settings = quick_settings(dense.run());
  const auto [first, lines] = measured(folder / "converted", settings);
  EXPECT_EQ(lines, 4);  // dense and three settings
  EXPECT_EQ(first.at("curves").as_array().size(), 2u);
  EXPECT_EQ(first.at("dense").at("loss").to_number<double>(), dense->evaluate().loss);
  EXPECT_EQ(first.at("device").as_string(), testing::text_of(default_device()));
  EXPECT_EQ(measured(folder / "converted", settings), (std::pair(first, 0)));
  const json::value map = parse_json(testing::read_bytes(folder / "converted" / "compute_map.json"), "map");
  EXPECT_EQ(map.at("method").as_string(), "dynk_max");
  EXPECT_EQ(map.at("value").to_number<double>(), 0.5);  // 1 would run all experts, far from sweep.map_share

  settings["sweep"].as_object()["dynk_max"] = {0.25};
  const auto [second, more_lines] = measured(folder / "converted", settings);
  EXPECT_EQ(more_lines, 3);
  EXPECT_EQ(second.at("config").at("sweep").at("dynk_max"), json::value({0.25}));
  EXPECT_EQ(second.at("curves").at(1), first.at("curves").at(1));  // of the same model
}

TEST(MeasureConversion, RoutersOfMoeficationAreMeasuredByTopkAndTheDenseModelIsTheRunWhereAllBegan) {
  DenseTask dense;
  const testing::TemporaryFolder folder;
  json::object sparsified = quick_settings(dense.run());
  sparsified["phases"] = {"sparsify"};
  sparsified["sparsify"] = {{"steps", 2}};
  Conversion first(folder / "sparsified", config_from_json<ConversionConfig>(sparsified), "",
                   [](const std::string&) {});
  EXPECT_TRUE(first.run([] { return false; }));
  first.measure();
  EXPECT_FALSE(std::filesystem::exists(folder / "sparsified" / "sweep.json"));
  EXPECT_EQ(dense_run(folder / "sparsified"), dense.run());

  json::object settings = quick_settings(folder / "sparsified");
  settings["routers"].as_object()["kind"] = "moefication";
  const auto [sweep, lines] = measured(folder / "converted", settings);
  EXPECT_EQ(lines, 2);
  EXPECT_EQ(sweep.at("curves").at(0).at("method").as_string(), "topk");
  EXPECT_EQ(sweep.at("dense").at("loss").to_number<double>(), dense->evaluate().loss);
}

}  // namespace
}  // namespace switchyard::train
