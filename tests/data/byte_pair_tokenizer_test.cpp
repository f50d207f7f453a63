#include "data/byte_pair_tokenizer.h"

#include <gtest/gtest.h>

#include "data/unicode.h"
#include "tests/support/errors.h"

namespace switchyard::data {
namespace {

using Ids = std::vector<std::int32_t>;

/// The bytes by their numbers, then what merges make.
BytePairOptions small_vocabulary() {
  BytePairOptions options;
  for (int byte = 0; byte < 256; ++byte) options.pieces.emplace_back(1, static_cast<char>(byte));
  for (const char* piece : {"he", " he", "ll", "\xC3\xA9", "<|endoftext|>"}) options.pieces.emplace_back(piece);
  options.merges = {{"h", "e"}, {"l", "l"}, {" ", "he"}, {"\xC3", "\xA9"}};
  return options;
}

class BytePairs : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_unicode()) GTEST_SKIP() << "built without utf8proc";
  }
};

TEST_F(BytePairs, AreJoinedInTheOrderOfTheMerges) {
  const BytePairTokenizer tokenizer(small_vocabulary());
  EXPECT_EQ(tokenizer.encode("hell he"), (Ids{256, 258, 257}));
  EXPECT_EQ(tokenizer.encode("lll\xC3\xA9"), (Ids{258, 'l', 259}));
  EXPECT_EQ(tokenizer.encode("  he"), (Ids{' ', 257}));
  EXPECT_EQ(tokenizer.encode("he\xFF"), (Ids{256, 0xEF, 0xBF, 0xBD}));  // no UTF-8
  EXPECT_EQ(tokenizer.decode(Ids{257, 258, 260}), " hell<|endoftext|>");
  EXPECT_EQ(tokenizer.separator(), 260);
  EXPECT_EQ(tokenizer.encode("<|endoftext|>").size(), 13u);
  EXPECT_TRUE(tokenizer.encode("").empty());
}

TEST_F(BytePairs, Errors) {
  BytePairOptions options = small_vocabulary();
  options.merges.emplace_back("x", "y");
  EXPECT_ERROR(BytePairTokenizer{options}, "byte pairs: the vocabulary of 261 pieces has no \"xy\"");
  options = small_vocabulary();
  options.pieces['q'] = "Q";
  EXPECT_ERROR(BytePairTokenizer{options}, "byte pairs: the vocabulary of 261 pieces has none for byte 113");
  options = small_vocabulary();
  options.separator = "</s>";
  EXPECT_ERROR(BytePairTokenizer{options}, "byte pairs: the vocabulary of 261 pieces has no \"</s>\"");
  const BytePairTokenizer tokenizer(small_vocabulary());
  EXPECT_ERROR(tokenizer.decode(Ids{261}), "byte pairs: token id 261 is not in 0..260");
}

}  // namespace
}  // namespace switchyard::data
