#include <gtest/gtest.h>

#include <random>
#include <string>

#include "core/io/checksum.h"
#include "tests/support/temporary_folder.h"

namespace switchyard {
namespace {

// Values of the reference implementation (xxHash 0.8).
TEST(Checksum, PublishedValues) {
  EXPECT_EQ(checksum(""), 0xEF46DB3751D8E999u);
  EXPECT_EQ(checksum("a"), 0xD24EC4F1A98C6E5Bu);
  EXPECT_EQ(checksum("as"), 0x1C330FB2D66BE179u);
  EXPECT_EQ(checksum("asd"), 0x631C37CE72A97393u);
  EXPECT_EQ(checksum("asdf"), 0x415872F599CEA71Eu);
  EXPECT_EQ(checksum("abc"), 0x44BC2CF5AD770999u);
  EXPECT_EQ(checksum("Call me Ishmael. Some years ago--never mind how long precisely-"), 0x02A2E85470D6FD96u);
  std::string ramp(101, ' ');
  for (std::size_t i = 0; i < ramp.size(); ++i) ramp[i] = static_cast<char>((i * 37 + 11) % 256);
  EXPECT_EQ(checksum(ramp), 0x30383413A6F6646Au);
  EXPECT_EQ(checksum(ramp, 0x9E3779B1u), 0xD1DE08ED9C1E96EDu);
}

TEST(Checksum, PiecesGiveTheSameAsTheWhole) {
  std::mt19937 random(1);
  std::string bytes(1000, ' ');
  for (char& c : bytes) c = static_cast<char>(random());
  for (int trial = 0; trial < 300; ++trial) {
    const std::size_t size = random() % (bytes.size() + 1);
    Checksum sum(7);
    for (std::size_t at = 0; at < size;) {
      const std::size_t piece = std::min<std::size_t>(random() % 70, size - at);
      sum.update(bytes.data() + at, piece);
      at += piece;
    }
    ASSERT_EQ(sum.value(), checksum(bytes.data(), size, 7)) << size;
  }
}

TEST(Checksum, OfFile) {
  testing::TemporaryFolder folder;
  testing::write_bytes(folder / "abc", "abc");
  testing::write_bytes(folder / "empty", "");
  EXPECT_EQ(checksum_of_file(folder / "abc"), checksum("abc"));
  EXPECT_EQ(checksum_of_file(folder / "empty"), checksum(""));
  EXPECT_ERROR(checksum_of_file(folder / "none"), "none: No such file or directory");
  EXPECT_ERROR(checksum_of_file(folder.path()), "expected a regular file, got a folder");
}

}  // namespace
}  // namespace switchyard
