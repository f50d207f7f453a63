#include "data/corpus.h"

#include <gtest/gtest.h>

#include <set>

#include "core/error.h"
#include "data/permutation.h"
#include "tests/support/temporary_folder.h"

namespace switchyard::data {
namespace {

using testing::TemporaryFolder;
using testing::write_bytes;
using Texts = std::vector<std::string>;

Texts texts(const Corpus& corpus) {
  CorpusReader reader(corpus);
  Texts out;
  for (std::size_t i = 0; i < corpus.documents().size(); ++i) out.emplace_back(reader.text(i));
  return out;
}

TEST(Corpus, SeparatorSplitsDocuments) {
  const auto split = [](const char* text) { return texts(Corpus::from_text("t", text)); };
  EXPECT_EQ(split("one"), (Texts{"one"}));
  EXPECT_EQ(split("one\n\n\n"), (Texts{"one"}));
  EXPECT_EQ(split("one\n\n<|doc|>\ntwo\nlines\n\n<|doc|>\n three\n"), (Texts{"one", "two\nlines", " three"}));
  // Only a line of its own behind a blank line separates.
  EXPECT_EQ(split("a <|doc|> b\n<|doc|>\nc"), (Texts{"a <|doc|> b\n<|doc|>\nc"}));
  EXPECT_EQ(split("a\n\n<|doc|> b"), (Texts{"a\n\n<|doc|> b"}));
  // Documents without text are left out.
  EXPECT_EQ(split("\n\n<|doc|>\na\n\n<|doc|>\n\n\n<|doc|>\nb\n\n<|doc|>\n"), (Texts{"a", "b\n\n<|doc|>"}));
  EXPECT_EQ(split(""), Texts{});
  EXPECT_EQ(split("\n\n"), Texts{});
}

TEST(Corpus, FolderIsWalkedInSortedOrder) {
  TemporaryFolder folder;
  write_bytes(folder / "b.txt", "b\n");
  write_bytes(folder / "a/z.md", "z\n\n<|doc|>\ny");
  write_bytes(folder / "a/sub/c.h", "c");
  write_bytes(folder / "a/picture.png", std::string("\x89PNG\0\0", 6));
  write_bytes(folder / "a/packed.xz",
              "\xFD"
              "7zXZ without zero bytes");
  write_bytes(folder / "a/empty.txt", "");
  write_bytes(folder / ".git/config", "hidden");
  write_bytes(folder / ".hidden", "hidden");
  write_bytes(folder / "build/x.txt", "built");
  write_bytes(folder / "a/build/x.txt", "built");
  write_bytes(folder / "builder/x.txt", "kept");
  std::filesystem::create_directory_symlink(folder.path(), folder / "a/loop");
  const Corpus corpus = Corpus::from_paths({folder.path()});
  EXPECT_EQ(texts(corpus), (Texts{"c", "z", "y", "b", "kept"}));
  EXPECT_EQ(corpus.skipped_files(), 2u);
  EXPECT_EQ(corpus.bytes(), 8u);
  EXPECT_EQ(corpus.summary(), "5 documents, 8 bytes, from 4 files (2 files that are not text skipped)");
  EXPECT_NE(corpus.source_name(2).find("z.md"), std::string::npos);

  EXPECT_EQ(texts(Corpus::from_paths({folder / "b.txt", folder / "a/sub"})), (Texts{"b", "c"}));
}

TEST(Corpus, Errors) {
  TemporaryFolder folder;
  write_bytes(folder / "zero", std::string("a\0b", 3));
  write_bytes(folder / "packed.xz", std::string("\xFD"
                                                "7zXZ\0",
                                                6));
  write_bytes(folder / "packed.gz", std::string("\x1F\x8B\x08\0", 4));
  write_bytes(folder / "empty", "\n");
  std::filesystem::create_directory(folder / "nothing");
  EXPECT_ERROR(Corpus::from_paths({}), "corpus: no files or folders given");
  EXPECT_ERROR(Corpus::from_paths({folder / "none"}), "none: No such file or directory");
  EXPECT_ERROR(Corpus::from_paths({folder / "zero"}), "zero is not a text file (it holds zero bytes)");
  EXPECT_ERROR(Corpus::from_paths({folder / "packed.xz"}), "unpack it first: xz --decompress --keep");
  EXPECT_ERROR(Corpus::from_paths({folder / "packed.gz"}), "unpack it first: gzip --decompress --keep");
  EXPECT_ERROR(Corpus::from_paths({folder / "empty"}), "corpus: no text found in");
  EXPECT_ERROR(Corpus::from_paths({folder / "nothing"}), "nothing (0 files skipped)");
  write_bytes(folder / "text", "some text");
  const Corpus corpus = Corpus::from_paths({folder / "text"});
  write_bytes(folder / "text", "other");
  EXPECT_ERROR(texts(corpus), "text changed while in use: 9 bytes before, 5 now");
}

TEST(Corpus, SplitTakesWholeDocumentsWhereThereAreMany) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += "document " + std::to_string(i) + "\n\n<|doc|>\n";
  const Corpus corpus = Corpus::from_text("t", text + "last");
  const auto [training, validation] = corpus.split(0.1, 3);
  const Texts all = texts(corpus), kept = texts(training), held_out = texts(validation);
  std::set<std::string> together(kept.begin(), kept.end());
  together.insert(held_out.begin(), held_out.end());
  EXPECT_EQ(together.size(), all.size());
  EXPECT_EQ(kept.size() + held_out.size(), all.size());
  EXPECT_NEAR(static_cast<double>(validation.bytes()), 0.1 * static_cast<double>(corpus.bytes()), 20.0);
  EXPECT_EQ(texts(corpus.split(0.1, 3).second), held_out);
  EXPECT_NE(texts(corpus.split(0.1, 4).second), held_out);
}

TEST(Corpus, SplitCutsFewDocumentsAtALine) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "line " + std::to_string(i) + "\n";
  const Corpus corpus = Corpus::from_text("t", text);
  const auto [training, validation] = corpus.split(0.1);
  EXPECT_EQ(texts(training)[0] + texts(validation)[0] + "\n", text);
  EXPECT_TRUE(texts(validation)[0].starts_with("line 9"));
  EXPECT_ERROR(Corpus::from_text("t", "one line").split(0.1), "too little text to hold out");
  EXPECT_ERROR(corpus.split(0), "validation fraction 0 is not between 0 and 1");
  EXPECT_ERROR(corpus.split(1), "validation fraction 1 is not between 0 and 1");
}

TEST(Corpus, EmbeddedHoldsTheRepositorysText) {
  const Corpus corpus = Corpus::embedded();
  EXPECT_GT(corpus.documents().size(), 50u);
  EXPECT_GT(corpus.bytes(), 200'000u);
  bool found = false;
  for (const std::string& text : texts(corpus)) {
    EXPECT_EQ(text.find('\0'), std::string::npos);
    found |= text.find("std::string_view embedded_corpus_text() {") != std::string::npos;
  }
  EXPECT_TRUE(found);
}

TEST(Permutation, VisitsEveryIndexOnce) {
  for (std::uint64_t size : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097}) {
    for (std::uint64_t key : {0, 1, 99}) {
      const Permutation permutation(size, key);
      std::vector<bool> seen(size);
      for (std::uint64_t i = 0; i < size; ++i) {
        ASSERT_LT(permutation(i), size);
        ASSERT_FALSE(seen[permutation(i)]);
        seen[permutation(i)] = true;
      }
    }
  }
  EXPECT_ERROR(Permutation(0, 1), "permutation: size 0");
}

// Over many keys every place gets every number about equally often (a chi-squared test).
TEST(Permutation, IsUniform) {
  constexpr std::uint64_t kSize = 8, kKeys = 8000;
  double counts[kSize][kSize] = {};
  for (std::uint64_t key = 0; key < kKeys; ++key) {
    const Permutation permutation(kSize, key);
    for (std::uint64_t i = 0; i < kSize; ++i) counts[i][permutation(i)] += 1;
  }
  double chi_squared = 0;
  const double expected = static_cast<double>(kKeys) / kSize;
  for (const auto& row : counts)
    for (const double count : row) chi_squared += (count - expected) * (count - expected) / expected;
  EXPECT_LT(chi_squared, 49 + 6 * 10);  // (8 - 1)^2 degrees of freedom, deviation sqrt(98)
}

}  // namespace
}  // namespace switchyard::data
