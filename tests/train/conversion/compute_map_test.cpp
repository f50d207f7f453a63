#include "train/conversion/compute_map.h"

#include <gtest/gtest.h>

#include <boost/json/array.hpp>
#include <numeric>
#include <set>

#include "moe/conversion/cost.h"
#include "tests/train/conversion/converted_task.h"
#include "tests/train/tiny_classifier.h"
#include "train/conversion/phase.h"
#include "train/json_text.h"
#include "train/tasks/image_classification_task.h"
#include "train/tasks/text_classification_task.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;
using moe::GateMode;

std::vector<double> macs_of(const json::object& map) {
  std::vector<double> macs;
  for (const json::value& token : map.at("tokens").as_array()) macs.push_back(token.at("macs").to_number<double>());
  return macs;
}

TEST(ComputeMap, ShowsTheTextAndWhatItsTokensCost) {
  DenseTask task;
  const auto layers = convert(*task);
  for (moe::DynamicFeedForward* layer : layers) layer->set_gate({GateMode::dynk_max, 1, 0.6});
  const json::object map = compute_map(*task);
  EXPECT_EQ(map.at("kind").as_string(), "text");
  EXPECT_EQ(map.at("method").as_string(), "dynk_max");
  EXPECT_EQ(map.at("value").to_number<double>(), 0.6);
  EXPECT_EQ(parse_json(pretty_json(map), "map"), json::value(map));

  std::string text, expected;
  for (const json::value& token : map.at("tokens").as_array()) text += token.at("text").as_string().c_str();
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::int32_t id = task->text().validation[static_cast<std::int64_t>(i)];
    expected += id == 0 ? '\n' : static_cast<char>(id);  // bytes are tokens, and 0 separates documents
  }
  EXPECT_EQ(text, expected);

  // The same tokens again, one window at a time; the layers' own statistics give the mean.
  const std::vector<double> macs = macs_of(map);
  ASSERT_EQ(macs.size(), text.size());
  std::vector<std::int64_t> ids(macs.size());
  task->text().validation.read(0, static_cast<std::int64_t>(ids.size()), ids.data());
  for (std::size_t begin = 0; begin < ids.size(); begin += 16) {
    for (moe::DynamicFeedForward* layer : layers) layer->collect(true);
    const std::vector<std::int64_t> window(ids.begin() + static_cast<std::ptrdiff_t>(begin),
                                           ids.begin() + static_cast<std::ptrdiff_t>(begin) + 16);
    task->model().hidden(Tensor::from(window, {1, 16}).to(default_device()));
    double mean = 0;
    for (const moe::ConvertibleLayer& layer : moe::convertible_layers(task->model())) mean += layer.measured();
    EXPECT_NEAR(std::accumulate(macs.begin() + static_cast<std::ptrdiff_t>(begin),
                                macs.begin() + static_cast<std::ptrdiff_t>(begin) + 16, 0.0) /
                    16,
                mean, 1e-6 * mean);
  }
  EXPECT_GT(std::set<double>(macs.begin(), macs.end()).size(), 3u);
}

TEST(ComputeMap, WithAllExpertsEveryTokenCostsTheSame) {
  DenseTask task;
  convert(*task);
  const json::object map = compute_map(*task);
  const std::vector<double> macs = macs_of(map);
  EXPECT_EQ(std::set<double>(macs.begin(), macs.end()).size(), 1u);
  EXPECT_GT(macs.at(0), map.at("dense_macs").to_number<double>());
}

template <class Converted>
void convert_classifier(Converted& task) {
  moe::ConversionOptions options;
  options.expert_width = 4;
  options.router.hidden = 8;
  for (moe::DynamicFeedForward* layer : moe::convert_feed_forwards(blocks_of(task), options))
    layer->set_gate({GateMode::dynk_max, 1, 0.6});
}

TEST(ComputeMap, OfATextClassifierShowsItsTextsWithoutTheFilling) {
  const testing::TemporaryFolder folder;
  TextClassificationTask task(tiny_text_classifier(folder.path()), folder / "text", [](const std::string&) {});
  convert_classifier(task);
  const json::object map = compute_map(task);
  std::string text;
  for (const json::value& token : map.at("tokens").as_array()) text += token.at("text").as_string().c_str();
  std::string expected;
  std::istringstream lines(testing::read_bytes(folder / "valid.tsv"));
  for (std::string line; std::getline(lines, line);) {
    line.erase(0, line.find('\t') + 1);
    expected += '\n' + line.substr(line.size() > 19 ? line.size() - 19 : 0);
  }
  EXPECT_EQ(text, expected);  // all 20 texts have less than Exhibit::kTokens tokens
  const std::vector<double> macs = macs_of(map);
  EXPECT_GT(std::set<double>(macs.begin(), macs.end()).size(), 3u);
}

TEST(ComputeMap, OfAnImageClassifierShowsPixelsAndPatches) {
  const testing::TemporaryFolder folder;
  ImageClassificationTask task(tiny_image_classifier(folder.path()), [](const std::string&) {});
  convert_classifier(task);
  const json::object map = compute_map(task);
  EXPECT_EQ(map.at("kind").as_string(), "images");
  const json::array& images = map.at("images").as_array();
  ASSERT_EQ(images.size(), 20u);
  const std::string file = testing::read_bytes(folder / "valid-images"),
                    labels = testing::read_bytes(folder / "valid-labels");
  const json::value& third = images[2];
  EXPECT_EQ(third.at("label").as_string(), std::to_string(labels[8 + 2]));
  for (std::size_t row = 0; row < 8; ++row)
    for (std::size_t column = 0; column < 8; ++column)
      EXPECT_EQ(third.at("pixels").at(0).at(row).at(column).to_number<int>(),
                static_cast<unsigned char>(file[16 + 64 * 2 + 8 * row + column]));

  // The same image alone, its patches row by row behind the class token.
  const auto scale = data::LabelledImages::open(folder / "train-images", folder / "train-labels").scale();
  const auto files = data::LabelledImages::open(folder / "valid-images", folder / "valid-labels");
  const auto layers = moe::converted_layers(task.model());
  task.model().eval();
  for (moe::DynamicFeedForward* layer : layers) layer->collect(true);
  task.model().logits(files.batch(std::vector<data::ExampleTurn>{{2, 0}}, scale).images.to(default_device()));
  const std::int64_t side = 8 / task.config().model.patch_size;
  ASSERT_EQ(third.at("macs").as_array().size(), static_cast<std::size_t>(side));
  for (std::int64_t row = 0; row < side; ++row)
    for (std::int64_t column = 0; column < side; ++column) {
      double expected = 2 * 4 * 16 * 16;  // attention's projections
      for (const moe::DynamicFeedForward* layer : layers) {
        const auto counts = layer->statistics().last_counts().to_vector<double>();
        expected += moe::cost_of(*layer).per_token(counts[static_cast<std::size_t>(1 + side * row + column)]);
      }
      EXPECT_DOUBLE_EQ(
          third.at("macs").at(static_cast<std::size_t>(row)).at(static_cast<std::size_t>(column)).to_number<double>(),
          expected);
    }
}

TEST(ComputeMap, Errors) {
  DenseTask task;
  EXPECT_ERROR(compute_map(*task), "compute_map: the model has no converted layers");
}

TEST(TokenTexts, ACharacterOfSeveralTokensComesWithItsLastOne) {
  const data::ByteTokenizer bytes;
  const auto texts_of = [&](const std::string& text) {
    std::vector<std::int64_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return token_texts(bytes, ids);
  };
  using Texts = std::vector<std::string>;
  EXPECT_EQ(texts_of("a\u00e9b"), (Texts{"a", "", "\u00e9", "b"}));
  EXPECT_EQ(texts_of("\u20ac\U0001F600"), (Texts{"", "", "\u20ac", "", "", "", "\U0001F600"}));
  EXPECT_EQ(texts_of(std::string("a\0b", 3)), (Texts{"a", "\n", "b"}));
  EXPECT_EQ(texts_of("\xC3"
                     "a"),
            (Texts{"", "\uFFFDa"}));  // no character after all
  EXPECT_EQ(texts_of("\x80"), (Texts{"\uFFFD"}));
}

}  // namespace
}  // namespace switchyard::train
