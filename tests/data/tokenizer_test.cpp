#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "core/error.h"
#include "data/corpus.h"
#include "data/token_file.h"
#include "tests/support/temporary_folder.h"

namespace switchyard::data {
namespace {

using testing::TemporaryFolder;

TEST(ByteTokenizer, EveryByteThereAndBack) {
  const auto tokenizer = make_tokenizer("bytes");
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text.push_back(static_cast<char>(byte));
  const auto ids = tokenizer->encode(text);
  ASSERT_EQ(ids.size(), 256u);
  for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(ids[static_cast<std::size_t>(byte)], byte);
  EXPECT_EQ(tokenizer->decode(ids), text);
  EXPECT_EQ(tokenizer->vocabulary_size(), 256);
  EXPECT_EQ(tokenizer->separator(), 0);
  EXPECT_EQ(tokenizer->name(), "bytes");
  EXPECT_TRUE(tokenizer->encode("").empty());
}

TEST(ByteTokenizer, RefusesIdsOutsideTheVocabulary) {
  const ByteTokenizer tokenizer;
  EXPECT_ERROR(tokenizer.decode(std::vector<std::int32_t>{65, 256}), "bytes: token id 256 is not in 0..255");
  EXPECT_ERROR(tokenizer.decode(std::vector<std::int32_t>{-1}), "bytes: token id -1 is not in 0..255");
}

TEST(Tokenizer, UnknownNames) {
  EXPECT_ERROR(make_tokenizer("words"), "unknown tokenizer 'words', expected bytes or the path of a SentencePiece");
}

/// Sentences over made-up words, with the repetition that a tokenizer needs to learn anything.
std::string made_up_text(std::size_t lines) {
  const char* syllables[] = {"switch", "yard", "ex",  "pert",        "ro", "uter",
                             "to",     "ken",  "the", "caf\xC3\xA9", "se", "lects"};
  std::mt19937 random(11);
  std::string text;
  for (std::size_t line = 0; line < lines; ++line) {
    for (std::size_t word = random() % 12; word > 0; --word) {
      text += syllables[random() % 12];
      text += syllables[random() % 12];
      text += ' ';
    }
    text += line % 9 == 8 ? "\n\n<|doc|>\n" : "\n";
  }
  return text + "end";
}

TEST(SentencePiece, TrainsEncodesAndRoundTrips) {
  TemporaryFolder folder;
  const auto model = folder / "small.model";
  if (!has_sentencepiece()) {
    EXPECT_ERROR(load_sentencepiece(model), "built without SentencePiece: apt-get install libsentencepiece-dev");
    EXPECT_ERROR(train_sentencepiece(Corpus::from_text("t", "x"), model), "built without SentencePiece");
    GTEST_SKIP() << "built without SentencePiece";
  }
  const Corpus corpus = Corpus::from_text("made up", made_up_text(600));
  for (const std::string type : {"unigram", "bpe"}) {
    train_sentencepiece(corpus, model, {300, type});
    const auto tokenizer = make_tokenizer(model.string());
    EXPECT_EQ(tokenizer->vocabulary_size(), 300);
    EXPECT_EQ(tokenizer->name(), "sentencepiece");
    const std::string samples[] = {"the router selects the gate",
                                   "  two  spaces ",
                                   "line\nbreak\n\n\ttab",
                                   "caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x9A\x82",
                                   "",
                                   "\n",
                                   made_up_text(50)};
    for (const std::string& sample : samples) {
      const auto ids = tokenizer->encode(sample);
      EXPECT_EQ(tokenizer->decode(ids), sample) << type;
      EXPECT_EQ(std::count(ids.begin(), ids.end(), tokenizer->separator()), 0);
    }
    EXPECT_LT(tokenizer->encode("router selects yard").size(), 12u);
    EXPECT_ERROR(tokenizer->decode(std::vector<std::int32_t>{300}), "token id 300 is not in 0..299");

    write_token_file(folder / "tokens", corpus, tokenizer);
    const auto tokens = TokenFile::open(folder / "tokens", tokenizer.get());
    EXPECT_EQ(tokens.document_count(), static_cast<std::int64_t>(corpus.documents().size()));
    EXPECT_ERROR(TokenFile::open(folder / "tokens", make_tokenizer("bytes").get()), "not with 'bytes'");
  }
}

TEST(SentencePiece, TrainingIsDeterministic) {
  if (!has_sentencepiece()) GTEST_SKIP() << "built without SentencePiece";
  TemporaryFolder folder;
  const Corpus corpus = Corpus::from_text("made up", made_up_text(400));
  for (const char* name : {"a.model", "b.model"}) train_sentencepiece(corpus, folder / name, {290, "unigram"});
  EXPECT_EQ(testing::read_bytes(folder / "a.model"), testing::read_bytes(folder / "b.model"));
}

TEST(SentencePiece, Errors) {
  if (!has_sentencepiece()) GTEST_SKIP() << "built without SentencePiece";
  TemporaryFolder folder;
  const Corpus corpus = Corpus::from_text("made up", made_up_text(50));
  EXPECT_ERROR(train_sentencepiece(corpus, folder / "m.model", {300, "words"}), "model type 'words', expected unigram");
  EXPECT_ERROR(train_sentencepiece(corpus, folder / "m.model", {0, "bpe"}), "vocabulary size 0 is not positive");
  EXPECT_ERROR(train_sentencepiece(corpus, folder / "m.model", {10, "bpe"}), "cannot train 10 pieces");
  EXPECT_ERROR(train_sentencepiece(corpus, folder / "m.model", {90000, "unigram"}), "cannot train 90000 pieces");
  EXPECT_EQ(folder.entries(), 0u);
  testing::write_bytes(folder / "bad.model", "no model");
  testing::write_bytes(folder / "empty.model", "");
  EXPECT_ERROR(make_tokenizer((folder / "bad.model").string()), "bad.model is not a SentencePiece model");
  EXPECT_ERROR(make_tokenizer((folder / "empty.model").string()), "empty.model is not a SentencePiece model");
  EXPECT_ERROR(make_tokenizer((folder / "none.model").string()), "none.model: No such file");
}

}  // namespace
}  // namespace switchyard::data
