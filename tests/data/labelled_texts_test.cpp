#include "data/labelled_texts.h"

#include <gtest/gtest.h>

#include "tests/support/temporary_folder.h"

namespace switchyard::data {
namespace {

using namespace switchyard::testing;

TEST(LabelledTexts, ReadsOneExampleALine) {
  const TemporaryFolder folder;
  write_bytes(folder / "a.tsv", "pos\tgood film\nneg\tbad\tfilm\r\n");
  write_bytes(folder / "b.tsv", "pos\tno line break at the end");
  const LabelledTexts read = read_labelled_texts({folder / "a.tsv", folder / "b.tsv"});
  EXPECT_EQ(read.classes, (std::vector<std::string>{"neg", "pos"}));
  EXPECT_EQ(read.labels, (std::vector<std::int64_t>{1, 0, 1}));
  EXPECT_EQ(read.texts, (std::vector<std::string>{"good film", "bad\tfilm", "no line break at the end"}));
}

TEST(LabelledTexts, TakesTheClassesOfOtherFiles) {
  const TemporaryFolder folder;
  write_bytes(folder / "a.tsv", "c\tx\n");
  const LabelledTexts read = read_labelled_texts({folder / "a.tsv"}, {"a", "b", "c"});
  EXPECT_EQ(read.labels, std::vector<std::int64_t>{2});
  EXPECT_ERROR(read_labelled_texts({folder / "a.tsv"}, {"a", "b"}),
               "a.tsv:1: label \"c\" is unknown, expected one of a, b");
  EXPECT_EQ(read_labelled_texts({folder / "a.tsv"}, {"c", "a", "b"}).labels, std::vector<std::int64_t>{0});
}

TEST(LabelledTexts, ErrorsNameFileAndLine) {
  const TemporaryFolder folder;
  const auto error = [&](std::string_view bytes) {
    write_bytes(folder / "x.tsv", bytes);
    const std::string message = error_of([&] { read_labelled_texts({folder / "x.tsv"}); });
    return message.substr(message.find("x.tsv"));
  };
  EXPECT_EQ(error("a\tb\nno tab\n"), "x.tsv:2: has no tab, expected <label><tab><text>");
  EXPECT_EQ(error("a\tb\n\na\tb\n"), "x.tsv:2: has no tab, expected <label><tab><text>");
  EXPECT_EQ(error("\ttext\n"), "x.tsv:1: has no label before the tab, expected <label><tab><text>");
  EXPECT_EQ(error("label\t\n"), "x.tsv:1: has no text after the tab, expected <label><tab><text>");
  EXPECT_EQ(error(""), "x.tsv: no examples, expected lines of <label><tab><text>");
  EXPECT_EQ(error(std::string_view("a\tb\0c\n", 6)), "x.tsv is not a text file (it holds zero bytes)");
  EXPECT_EQ(error("\xFD"
                  "7zXZ rest"),
            "x.tsv is not a text file; it is packed, unpack it first: xz --decompress --keep");
}

std::vector<std::int64_t> row(const Tensor& x, std::int64_t index) {
  return x.select(0, index).to(DType::i64).to_vector<std::int64_t>();
}

TEST(TextExamples, FillsShortTextsAndKeepsTheEndOfLongOnes) {
  const LabelledTexts texts{{"abcdef", "xy", "abc"}, {1, 0, 1}, {"neg", "pos"}};
  const ByteTokenizer tokenizer;
  const TextExamples examples(texts, tokenizer, 4);
  const std::vector<ExampleTurn> turns = {{1, 7}, {0, 7}, {2, 7}};
  const LabelledTextBatch batch = examples.batch(turns);
  EXPECT_EQ(batch.labels.to_vector<std::int64_t>(), (std::vector<std::int64_t>{0, 1, 1}));
  EXPECT_EQ(row(batch.tokens, 0), (std::vector<std::int64_t>{0, 'x', 'y', 0}));
  EXPECT_EQ(row(batch.padding, 0), (std::vector<std::int64_t>{0, 0, 0, 1}));
  EXPECT_EQ(row(batch.tokens, 1), (std::vector<std::int64_t>{0, 'd', 'e', 'f'}));
  EXPECT_EQ(row(batch.tokens, 2), (std::vector<std::int64_t>{0, 'a', 'b', 'c'}));
  EXPECT_EQ(row(batch.padding, 2), (std::vector<std::int64_t>{0, 0, 0, 0}));
}

TEST(TextExamples, ChecksumTellsTokensAndLabelsApart) {
  const ByteTokenizer tokenizer;
  const auto checksum = [&](std::vector<std::string> texts, std::vector<std::int64_t> labels) {
    return TextExamples({std::move(texts), std::move(labels), {"a", "b"}}, tokenizer, 8).checksum();
  };
  EXPECT_EQ(checksum({"x", "y"}, {0, 1}), checksum({"x", "y"}, {0, 1}));
  EXPECT_NE(checksum({"x", "y"}, {0, 1}), checksum({"x", "z"}, {0, 1}));
  EXPECT_NE(checksum({"x", "y"}, {0, 1}), checksum({"x", "y"}, {1, 1}));
  EXPECT_ERROR(TextExamples({}, tokenizer, 1), "context 1 is too short, expected at least 2");
}

}  // namespace
}  // namespace switchyard::data
