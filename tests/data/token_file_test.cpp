#include "data/token_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>

#include "core/error.h"
#include "core/io/checksum.h"
#include "tests/support/temporary_folder.h"

namespace switchyard::data {
namespace {

using testing::read_bytes;
using testing::TemporaryFolder;
using testing::write_bytes;

const auto kBytes = std::make_shared<const ByteTokenizer>();

/// Three ids per byte, in a vocabulary that needs 4 bytes per token.
class WideTokenizer : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    for (const char c : text) ids.insert(ids.end(), {100'000 + static_cast<unsigned char>(c), 1, 2});
    return ids;
  }
  std::string decode(std::span<const std::int32_t>) const override { return ""; }
  std::int32_t vocabulary_size() const override { return 100'256; }
  std::int32_t separator() const override { return 0; }
  std::string name() const override { return "wide"; }
  std::uint64_t fingerprint() const override { return 77; }
};

std::vector<std::int64_t> all_ids(const TokenFile& tokens) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(tokens.size()));
  tokens.read(0, tokens.size(), ids.data());
  return ids;
}

TEST(TokenFile, HoldsDocumentsAndSeparators) {
  TemporaryFolder folder;
  write_token_file(folder / "t", Corpus::from_text("t", "ab\n\n<|doc|>\nc\nd\n\n<|doc|>\n\xFF"), kBytes);
  const auto tokens = TokenFile::open(folder / "t", kBytes.get());
  EXPECT_EQ(all_ids(tokens), (std::vector<std::int64_t>{'a', 'b', 0, 'c', '\n', 'd', 0, 255, 0}));
  EXPECT_EQ(tokens.document_count(), 3);
  EXPECT_EQ(tokens.document_begin(0), 0);
  EXPECT_EQ(tokens.document_begin(1), 3);
  EXPECT_EQ(tokens.document_begin(2), 7);
  EXPECT_EQ(tokens.document_begin(3), 9);
  EXPECT_EQ(tokens[5], 'd');
  EXPECT_EQ(tokens.vocabulary_size(), 256);
  EXPECT_EQ(tokens.separator(), 0);
  EXPECT_EQ(tokens.tokenizer_name(), "bytes");
  EXPECT_ERROR(tokens[9], "index 9 is not in 0..8");
  EXPECT_ERROR(tokens[-1], "index -1 is not in 0..8");
  EXPECT_ERROR(tokens.document_begin(4), "document 4 is not in 0..3");

  std::vector<std::int64_t> ring(20);
  tokens.read(7, 20, ring.data());
  for (std::size_t i = 0; i < ring.size(); ++i) EXPECT_EQ(ring[i], tokens[static_cast<std::int64_t>((7 + i) % 9)]);
}

TEST(TokenFile, LargeVocabulariesTakeFourBytes) {
  TemporaryFolder folder;
  write_token_file(folder / "t", Corpus::from_text("t", "a\xC8"), std::make_shared<WideTokenizer>());
  const WideTokenizer wide;
  EXPECT_EQ(all_ids(TokenFile::open(folder / "t", &wide)),
            (std::vector<std::int64_t>{100'097, 1, 2, 100'200, 1, 2, 0}));
  EXPECT_EQ(all_ids(TokenFile::open(folder / "t")).size(), 7u);
}

TEST(TokenFile, RandomCorporaRoundTrip) {
  TemporaryFolder folder;
  std::mt19937 random(2);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<std::string> documents(random() % 9 + 1);
    TokenFileWriter writer(folder / "t", kBytes);
    for (std::string& document : documents) {
      // Some longer than the piece that is encoded at once, with and without line breaks.
      document.resize(trial == 0 ? 3'000'000 + random() % 100 : random() % 50);
      for (char& c : document) c = static_cast<char>(random() % 255 + 1);
      if (trial == 0 && random() % 2 == 0) std::replace(document.begin(), document.end(), '\n', ' ');
      writer.add_document(document);
    }
    writer.commit();
    const auto tokens = TokenFile::open(folder / "t", kBytes.get());
    ASSERT_EQ(tokens.document_count(), static_cast<std::int64_t>(documents.size()));
    const auto ids = all_ids(tokens);
    std::size_t at = 0;
    for (std::size_t i = 0; i < documents.size(); ++i) {
      ASSERT_EQ(tokens.document_begin(static_cast<std::int64_t>(i)), static_cast<std::int64_t>(at));
      for (const char c : documents[i]) ASSERT_EQ(ids[at++], static_cast<unsigned char>(c));
      ASSERT_EQ(ids[at++], 0);
    }
    ASSERT_EQ(at, ids.size());
  }
}

TEST(TokenFile, WriterRefusesWhatItCannotStore) {
  TemporaryFolder folder;
  {
    TokenFileWriter writer(folder / "t", kBytes);
    EXPECT_ERROR(writer.add_document(std::string("a\0b", 3), "notes.txt"),
                 "notes.txt: token 1 of the text is the separator 0 of the tokenizer 'bytes'");
  }
  {
    TokenFileWriter writer(folder / "t", kBytes);
    EXPECT_ERROR(writer.commit(), "token file: no document was added");
  }
  EXPECT_EQ(folder.entries(), 0u);
}

/// Changes `bytes` at an offset, and makes the header's own checksum right again unless told not to.
template <class T>
std::string patched(std::string bytes, std::size_t offset, T value, bool fix_header = true) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  const std::uint64_t sum = checksum(bytes.data(), 184);
  if (fix_header) std::memcpy(bytes.data() + 184, &sum, sizeof sum);
  return bytes;
}

/// As patched, with the content's checksum right as well.
template <class T>
std::string patched_content(std::string bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  return patched(bytes, 176, checksum(bytes.data() + 192, bytes.size() - 192));
}

TEST(TokenFile, DamagedFilesAreNamedAndRefused) {
  TemporaryFolder folder;
  const auto path = folder / "bad.tokens";
  write_token_file(path, Corpus::from_text("t", "abcd\n\n<|doc|>\nefg"), kBytes);
  const std::string good = read_bytes(path);
  ASSERT_EQ(good.size(), 192u + 24u + 16u);  // 9 tokens of 2 bytes filled up to 24, two documents
  constexpr std::size_t kDocuments = 192 + 24;
  const std::uint64_t huge = ~std::uint64_t{0};
  const std::pair<std::string, const char*> table[] = {
      {"", "this is not a token file"},
      {"SWY", "this is not a token file"},
      {"some text that is longer than a header would be", "this is not a token file"},
      {patched(good, 0, 'X'), "this is not a token file"},
      {good.substr(0, 8), "the file ends inside its header, after 8 bytes"},
      {good.substr(0, 191), "the file ends inside its header, after 191 bytes"},
      {good.substr(0, 192), "do not make the 0 bytes behind the header (is the file truncated?)"},
      {good.substr(0, good.size() - 1), "do not make the 39 bytes behind the header (is the file truncated?)"},
      {good + "x", "do not make the 41 bytes behind the header"},
      {good + good, "9 tokens of 2 bytes and 2 documents do not make the 272 bytes"},
      {patched(good, 8, std::uint32_t{2}), "format version 2, this program reads version 1"},
      {patched(good, 24, std::uint64_t{3}, false), "the header is damaged"},
      {patched(good, 100, 'x', false), "the header is damaged"},
      {patched(good, 184, huge, false), "the header is damaged"},
      {patched(good, 12, std::uint32_t{0}), "token width 0 bytes, expected 2 or 4"},
      {patched(good, 12, std::uint32_t{8}), "token width 8 bytes, expected 2 or 4"},
      {patched(good, 12, std::uint32_t{4}), "9 tokens of 4 bytes and 2 documents do not make the 40 bytes"},
      {patched(good, 16, huge), "do not make the 40 bytes"},
      {patched(good, 16, std::uint64_t{1} << 63), "do not make the 40 bytes"},
      {patched(good, 16, std::uint64_t{0}), "do not make the 40 bytes"},
      {patched(good, 16, std::uint64_t{13}), "do not make the 40 bytes"},
      {patched(good, 24, huge), "do not make the 40 bytes"},
      {patched(good, 24, (huge >> 3) + 3), "do not make the 40 bytes"},
      {patched(good, 24, std::uint64_t{1}), "do not make the 40 bytes"},
      {patched(patched(good, 16, std::uint64_t{20}), 24, std::uint64_t{0}), "20 tokens cannot hold 0 documents"},
      {patched(patched(good, 16, std::uint64_t{0}), 24, std::uint64_t{5}), "0 tokens cannot hold 5 documents"},
      {patched(good, 32, std::uint32_t{0}), "vocabulary size 0 is not in 1..2^31-1"},
      {patched(good, 32, std::uint32_t{1} << 31), "vocabulary size 2147483648 is not in"},
      {patched(good, 32, std::uint32_t{65537}), "vocabulary size 65537 does not fit tokens of 2 bytes"},
      {patched(good, 32, std::uint32_t{100}), "token id 103 is not in the vocabulary of 100"},
      {patched(good, 36, std::uint32_t{256}), "separator 256 is not in the vocabulary of 256"},
      {patched(good, 36, std::uint32_t{1}), "document 0 does not end with the separator 1"},
      {patched(good, 111, 'x'), "the tokenizer's name is not terminated"},
      {patched(good, 40, std::uint64_t{5}),
       "made with the tokenizer 'bytes' (vocabulary 256, fingerprint 5), not with"},
      {patched(good, 192, 'x'), "the content is damaged"},
      {patched(good, 192 + 20, 'x'), "the content is damaged"},
      {patched(good, kDocuments, std::uint64_t{1}), "the content is damaged"},
      {patched(good, 176, huge), "the content is damaged"},
      {patched_content(good, 192, std::uint16_t{256}), "token id 256 is not in the vocabulary of 256"},
      {patched_content(good, 192, std::uint16_t{65535}), "token id 65535 is not in the vocabulary of 256"},
      {patched_content(good, 192 + 8, 'x'), "document 0 does not end with the separator 0"},
      {patched_content(good, 192 + 16, 'x'), "document 1 does not end with the separator 0"},
      {patched_content(good, kDocuments, std::uint64_t{1}), "the first document starts at token 1, expected 0"},
      {patched_content(good, kDocuments + 8, std::uint64_t{0}), "document 0 spans tokens 0 to 0 of 9"},
      {patched_content(good, kDocuments + 8, std::uint64_t{9}), "document 1 spans tokens 9 to 9 of 9"},
      {patched_content(good, kDocuments + 8, std::uint64_t{10}), "document 0 spans tokens 0 to 10 of 9"},
      {patched_content(good, kDocuments + 8, huge), "document 0 spans tokens 0 to 9223372036854775807 of 9"},
      {patched_content(good, kDocuments + 8, std::uint64_t{4}), "document 0 does not end with the separator 0"},
  };
  for (const auto& [bytes, message] : table) {
    write_bytes(path, bytes);
    EXPECT_ERROR(TokenFile::open(path, kBytes.get()), message);
    EXPECT_ERROR(TokenFile::open(path, kBytes.get()), "token file: ");
    EXPECT_ERROR(TokenFile::open(path, kBytes.get()), "bad.tokens: ");
  }
  write_bytes(path, good);
  EXPECT_EQ(TokenFile::open(path, kBytes.get()).size(), 9);
  const WideTokenizer wide;
  EXPECT_ERROR(TokenFile::open(path, &wide), "not with 'wide' (vocabulary 100256, fingerprint 4d)");
  EXPECT_ERROR(TokenFile::open(folder / "none"), "none: No such file or directory");
}

// One wrong bit anywhere is noticed.
TEST(TokenFile, EveryFlippedBitIsNoticed) {
  TemporaryFolder folder;
  const auto path = folder / "t";
  write_token_file(path, Corpus::from_text("t", "abcd\n\n<|doc|>\nefg"), kBytes);
  const std::string good = read_bytes(path);
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string bytes = good;
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i % 8)));
    write_bytes(path, bytes);
    EXPECT_THROW(TokenFile::open(path), Error) << "byte " << i;
  }
}

}  // namespace
}  // namespace switchyard::data
