#include "data/wordpiece_tokenizer.h"

#include <gtest/gtest.h>

#include "data/labelled_texts.h"
#include "data/unicode.h"
#include "tests/support/errors.h"

namespace switchyard::data {
namespace {

using Ids = std::vector<std::int32_t>;

WordPieceOptions small_vocabulary() {
  WordPieceOptions options;
  options.pieces = {"[UNK]", "[CLS]", "[SEP]", "un", "##able", "##a", "able", "to", ",", "[", "]", "sep"};
  return options;
}

class WordPiece : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_unicode()) GTEST_SKIP() << "built without utf8proc";
  }
};

TEST_F(WordPiece, TakesTheLongestPieces) {
  const WordPieceTokenizer tokenizer(small_vocabulary());
  EXPECT_EQ(tokenizer.encode("unable  able, to"), (Ids{3, 4, 6, 8, 7}));
  EXPECT_EQ(tokenizer.encode("\xC3\x9AN\xC3\xA1"), (Ids{3, 5}));  // with accents
  EXPECT_EQ(tokenizer.encode("unables to"), (Ids{0, 7}));
  EXPECT_TRUE(tokenizer.encode(" \n").empty());
  EXPECT_EQ(tokenizer.decode(Ids{3, 4, 6, 8, 7, 0}), "unable able , to [UNK]");
  EXPECT_EQ(tokenizer.decode(Ids{}), "");
}

TEST_F(WordPiece, TextThatLooksLikeASeparatorIsText) {
  const WordPieceTokenizer tokenizer(small_vocabulary());
  EXPECT_EQ(tokenizer.encode("[SEP]"), (Ids{9, 11, 10}));
}

TEST_F(WordPiece, LongWordsAreUnknown) {
  WordPieceOptions options = small_vocabulary();
  options.longest_word = 3;
  const WordPieceTokenizer tokenizer(options);
  EXPECT_EQ(tokenizer.encode("una unaa"), (Ids{3, 5, 0}));
}

TEST_F(WordPiece, Errors) {
  WordPieceOptions options = small_vocabulary();
  options.unknown = "<unk>";
  EXPECT_ERROR(WordPieceTokenizer{options}, "wordpiece: the vocabulary of 12 pieces has no <unk>");
  const WordPieceTokenizer tokenizer(small_vocabulary());
  EXPECT_ERROR(tokenizer.decode(Ids{12}), "wordpiece: token id 12 is not in 0..11");
}

TEST_F(WordPiece, LabelledTextsStandInItsFrame) {
  const WordPieceTokenizer tokenizer(small_vocabulary());
  const TextExamples examples({{"to", "unable able to, to"}, {1, 0}, {"a", "b"}}, tokenizer, 5);
  const std::vector<ExampleTurn> turns = {{0, 0}, {1, 0}};
  const LabelledTextBatch batch = examples.batch(turns);
  EXPECT_EQ(batch.tokens.to_vector<std::int64_t>(), (std::vector<std::int64_t>{1, 7, 2, 2, 2, 1, 7, 8, 7, 2}));
  EXPECT_EQ(batch.padding.to_vector<bool>(),
            (std::vector<bool>{false, false, false, true, true, false, false, false, false, false}));
  EXPECT_ERROR(TextExamples({}, tokenizer, 2), "context 2 is too short, expected at least 3");
}

}  // namespace
}  // namespace switchyard::data
