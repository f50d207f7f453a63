#include "data/labelled_images.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/support/close.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"

namespace switchyard::data {
namespace {

using namespace switchyard::testing;

std::string big_endian(std::uint32_t number) {
  return {static_cast<char>(number >> 24), static_cast<char>(number >> 16), static_cast<char>(number >> 8),
          static_cast<char>(number)};
}

std::string numbers(const std::vector<std::uint32_t>& values) {
  std::string bytes;
  for (const std::uint32_t value : values) bytes += big_endian(value);
  return bytes;
}

/// Two images of 2 x 3 pixels, of classes 1 and 4.
struct TwoImages {
  TwoImages() {
    write_bytes(folder / "images",
                numbers({0x803, 2, 2, 3}) + std::string("\x00\x01\x02\x03\x04\x05\xFF\xFE\xFD\xFC\xFB\xFA", 12));
    write_bytes(folder / "labels", numbers({0x801, 2}) + "\x01\x04");
  }
  LabelledImages open() const { return LabelledImages::open(folder / "images", folder / "labels"); }
  /// The message of opening with other bytes in one of the files.
  std::string error(const std::string& file, const std::string& bytes) const {
    write_bytes(folder / file, bytes);
    const std::string message = error_of([&] { open(); });
    return message.substr(std::min(message.find("/" + file), message.size()));
  }
  TemporaryFolder folder;
};

TEST(LabelledImages, ReadsPixelsAndLabels) {
  const TwoImages files;
  const LabelledImages images = files.open();
  EXPECT_EQ(images.size(), 2);
  EXPECT_EQ(images.height(), 2);
  EXPECT_EQ(images.width(), 3);
  EXPECT_EQ(images.classes(), 5);
  const std::vector<ExampleTurn> turns = {{1, 99}, {0, 99}, {1, 99}};
  const LabelledImageBatch batch = images.batch(turns, {.mean = 0.5, .deviation = 0.25});
  EXPECT_EQ(batch.labels.to_vector<std::int64_t>(), (std::vector<std::int64_t>{4, 1, 4}));
  const Tensor expected = tensor_of({3, 1, 2, 3}, [](const Shape& at) {
    const double pixel = static_cast<double>(at[2] * 3 + at[3]);
    return ((at[0] == 1 ? pixel : 255 - pixel) / 255 - 0.5) / 0.25;
  });
  EXPECT_CLOSE(batch.images, expected, 1e-6);
}

TEST(LabelledImages, ScaleIsMeanAndDeviationOfAllPixels) {
  const TwoImages files;
  const ImageScale scale = files.open().scale();
  double mean = 0, square = 0;
  for (int i = 0; i < 6; ++i)
    for (const double value : {i / 255.0, 1 - i / 255.0}) mean += value / 12;
  for (int i = 0; i < 6; ++i)
    for (const double value : {i / 255.0, 1 - i / 255.0}) square += (value - mean) * (value - mean) / 12;
  EXPECT_NEAR(scale.mean, mean, 1e-12);
  EXPECT_NEAR(scale.deviation, std::sqrt(square), 1e-12);
}

TEST(LabelledImages, MovesEachImageByItsRandomNumber) {
  const TwoImages files;
  const LabelledImages images = files.open();
  std::vector<ExampleTurn> turns;
  for (std::uint64_t down = 0; down < 3; ++down)
    for (std::uint64_t right = 0; right < 3; ++right) turns.push_back({1, down | right << 32});
  const ImageScale scale{.mean = 0.1, .deviation = 2};
  const LabelledImageBatch batch = images.batch(turns, scale, 1);
  const Tensor expected = tensor_of({9, 1, 2, 3}, [&](const Shape& at) {
    const std::int64_t y = at[2] - (at[0] / 3 - 1), x = at[3] - (at[0] % 3 - 1);
    const bool inside = y >= 0 && y < 2 && x >= 0 && x < 3;
    return ((inside ? 255.0 - static_cast<double>(y * 3 + x) : 0.0) / 255 - scale.mean) / scale.deviation;
  });
  EXPECT_CLOSE(batch.images, expected, 1e-6);
}

TEST(LabelledImages, ErrorsNameTheFile) {
  const TwoImages files;
  const std::string header = numbers({0x803, 2, 2, 3});
  EXPECT_EQ(files.error("images", ""), "/images: has 0 bytes, expected a header of 16");
  EXPECT_EQ(files.error("images", header.substr(0, 15)), "/images: has 15 bytes, expected a header of 16");
  EXPECT_EQ(files.error("images", numbers({0x801, 2, 2, 3})),
            "/images: begins with 0x00000801, expected 0x00000803 (unsigned bytes, 3 axes)");
  EXPECT_EQ(files.error("images", header + std::string(11, 'x')),
            "/images: holds 11 values, expected the 12 that its header says");
  EXPECT_EQ(files.error("images", header + std::string(13, 'x')),
            "/images: holds 13 values, expected the 12 that its header says");
  EXPECT_EQ(files.error("images", numbers({0x803, 0, 2, 3})), "/images: holds no examples");
  EXPECT_EQ(files.error("images", numbers({0x803, 2, 0, 3})),
            "/images: axis 1 has size 0, expected images of 1 to 268435456 pixels");
  EXPECT_EQ(files.error("images", numbers({0x803, 0xFFFFFFFF, 0x10000, 0x10000})),
            "/images: axis 2 has size 65536, expected images of 1 to 268435456 pixels");
  EXPECT_EQ(files.error("images", "\x1F\x8B packed"),
            "/images is no IDX file; it is packed, unpack it first: gzip --decompress --keep");
  write_bytes(files.folder / "images", header + std::string(12, 'x'));
  EXPECT_EQ(files.error("labels", numbers({0x801, 3}) + "abc"), "/labels 3 labels, expected as many");
  EXPECT_EQ(files.error("labels", numbers({0x801, 2}) + "a"),
            "/labels: holds 1 values, expected the 2 that its header says");
}

TEST(LabelledImages, ChecksumTellsPixelsAndLabelsApart) {
  const TwoImages files;
  const std::uint64_t before = files.open().checksum();
  EXPECT_EQ(files.open().checksum(), before);
  write_bytes(files.folder / "labels", numbers({0x801, 2}) + "\x01\x05");
  EXPECT_NE(files.open().checksum(), before);
  EXPECT_ERROR(files.open().batch(std::vector<ExampleTurn>{{2, 0}}, {}), "example 2 is none of 2");
}

}  // namespace
}  // namespace switchyard::data
