#include <gtest/gtest.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include "data/unicode.h"
#include "tests/train/import_fixtures.h"
#include "train/import/hub_tokenizer.h"
#include "train/json_text.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;
using Ids = std::vector<std::int32_t>;

/// Tokenizers of the transformers library; tools/make_tokenizer_fixtures.py made them.
class ImportedTokenizer : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!data::has_unicode()) GTEST_SKIP() << "built without utf8proc";
  }

  static std::string file(const std::string& name) { return testing::read_bytes(fixture("tokenizers") / name); }

  /// The tokenizer of `name` after `text` in it has become `replacement`.
  std::shared_ptr<const data::Tokenizer> changed(const std::string& name, const std::string& text,
                                                 const std::string& replacement) {
    std::string bytes = file(name);
    const auto at = bytes.find(text);
    EXPECT_NE(at, std::string::npos) << text;
    testing::write_bytes(folder_ / "tokenizer.json", bytes.replace(at, text.size(), replacement));
    return load_hub_tokenizer(folder_ / "tokenizer.json");
  }

  /// Every text of cases.json must get the ids that the library gave it.
  static void expect_ids(const data::Tokenizer& tokenizer, const std::string& name) {
    const json::object cases = parse_json(file("cases.json"), "cases.json").get_object();
    const json::array &texts = cases.at("texts").get_array(), &ids = cases.at(name).get_array();
    ASSERT_EQ(texts.size(), ids.size());
    EXPECT_GT(texts.size(), 400u);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      Ids expected;
      for (const json::value& id : ids[i].get_array()) expected.push_back(id.to_number<std::int32_t>());
      EXPECT_EQ(tokenizer.encode(text_of(texts[i])), expected) << texts[i];
    }
  }
  static std::string text_of(const json::value& text) { return std::string(text.get_string()); }

  testing::TemporaryFolder folder_;
};

TEST_F(ImportedTokenizer, WordPieceGivesTheLibrarysIds) {
  const auto uncased = load_hub_tokenizer(fixture("tokenizers") / "bert.json");
  expect_ids(*uncased, "uncased");
  const auto cased = changed("bert.json", "\"lowercase\": true", "\"lowercase\": false");
  expect_ids(*cased, "cased");
  EXPECT_NE(cased->fingerprint(), uncased->fingerprint());
  EXPECT_EQ(uncased->vocabulary_size(), 1500);
  EXPECT_EQ(uncased->separator(), 3);
  EXPECT_EQ(uncased->frame().before, Ids{2});
  EXPECT_EQ(uncased->frame().after, Ids{3});
}

TEST_F(ImportedTokenizer, BytePairsGiveTheLibrarysIdsAndTheTextBack) {
  const auto tokenizer = load_hub_tokenizer(fixture("tokenizers") / "gpt2.json");
  expect_ids(*tokenizer, "gpt2");
  const json::object cases = parse_json(file("cases.json"), "cases.json").get_object();
  for (const json::value& text : cases.at("texts").get_array())
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text_of(text))), text_of(text));
  EXPECT_EQ(tokenizer->vocabulary_size(), 1000);
  EXPECT_EQ(tokenizer->separator(), 0);
  EXPECT_EQ(tokenizer->frame().before, Ids{0});
  EXPECT_TRUE(tokenizer->frame().after.empty());
}

TEST_F(ImportedTokenizer, MergesAreReadAsTextsToo) {
  std::string bytes = file("gpt2.json");
  const auto begin = bytes.find('[', bytes.find("\"merges\""));
  json::value merges = parse_json(bytes.substr(begin, bytes.rfind(']') + 1 - begin), "merges");
  for (json::value& merge : merges.get_array()) merge = text_of(merge.at(0)) + ' ' + text_of(merge.at(1));
  bytes.replace(begin, bytes.rfind(']') + 1 - begin, json::serialize(merges));
  testing::write_bytes(folder_ / "tokenizer.json", bytes);
  expect_ids(*load_hub_tokenizer(folder_ / "tokenizer.json"), "gpt2");
}

TEST_F(ImportedTokenizer, NamesBytePairsThatItCannotRead) {
  const std::string at = "tokenizer: " + (folder_ / "tokenizer.json").string() + ": ";
  const auto error = [&](const std::string& text, const std::string& replacement) {
    return testing::error_of([&] { changed("gpt2.json", text, replacement); });
  };
  EXPECT_EQ(error("\"add_prefix_space\": false", "\"add_prefix_space\": true"),
            at + "pre_tokenizer.add_prefix_space: true has no counterpart here, expected false");
  EXPECT_EQ(error("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}"),
            at + "normalizer: {\"type\":\"NFC\"} has no counterpart here, expected null");
  EXPECT_EQ(error("\"\xC4\xA0\",\n        \"t\"\n", "\"t\"\n"), at + "model.merges: [\"t\"], expected two pieces");
  EXPECT_EQ(error("\"merges\": [", "\"merges\": [[\"q\", \"q\"],"),
            at + "byte pairs: the vocabulary of 1000 pieces has no \"qq\"");
  EXPECT_EQ(error("      \"q\": ", "      \"qqq\": "),
            at + "byte pairs: the vocabulary of 1000 pieces has none for byte 113");
}

TEST_F(ImportedTokenizer, NamesWhatItCannotRead) {
  const std::string at = "tokenizer: " + (folder_ / "tokenizer.json").string() + ": ";
  EXPECT_ERROR(changed("bert.json", "\"WordPiece\",\n    \"unk", "\"Unigram\",\n    \"unk"),
               at + "model.type: \"Unigram\" has no counterpart here, expected \"WordPiece\" or \"BPE\"");
  EXPECT_ERROR(changed("bert.json", "BertNormalizer", "Lowercase"),
               at + "normalizer.type: \"Lowercase\" has no counterpart here, expected \"BertNormalizer\"");
  EXPECT_ERROR(changed("bert.json", "\"clean_text\": true", "\"clean_text\": false"),
               at + "normalizer.clean_text: false has no counterpart here, expected true");
  EXPECT_ERROR(changed("bert.json", "\"[MASK]\": 4", "\"[MASK]\": 4000"),
               at + "no token has the id 1500, expected all from 0 on");
  EXPECT_ERROR(changed("bert.json", "\"[MASK]\": 4", "\"[MASK]\": 3"),
               at + "\"[SEP]\" and \"[MASK]\" have the same id 3");
  EXPECT_ERROR(changed("bert.json", "\"[CLS]\": 2", "\"[CLS]\": \"2\""),
               at + "the id of \"[CLS]\" is no number, expected one from 0");
  EXPECT_ERROR(changed("bert.json", "\"unk_token\": \"[UNK]\"", "\"unk_token\": \"<unk>\""),
               at + "wordpiece: the vocabulary of 1500 pieces has no <unk>");
  EXPECT_ERROR(changed("bert.json", "\"version\"", "version"), at + "line 2, column 3: not valid JSON");
  testing::write_bytes(folder_ / "tokenizer.json", "[]");
  EXPECT_ERROR(load_hub_tokenizer(folder_ / "tokenizer.json"), at + "holds no JSON object");
}

}  // namespace
}  // namespace switchyard::train
