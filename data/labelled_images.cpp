#include "data/labelled_images.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iomanip>
#include <sstream>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/io/checksum.h"
#include "data/packed_file.h"

namespace switchyard::data {
namespace {

constexpr std::uint32_t kMostPixels = 1 << 28;  // of one image

struct IdxFile {
  std::shared_ptr<MappedFile> file;
  std::vector<std::uint32_t> sizes;  // of the axes
  const std::uint8_t* values = nullptr;
};

std::string hex(std::uint32_t number) {
  return (std::ostringstream() << "0x" << std::hex << std::setw(8) << std::setfill('0') << number).str();
}

/// The magic number of unsigned bytes with that many axes.
constexpr std::uint32_t magic_of(std::size_t axes) { return 0x800 + static_cast<std::uint32_t>(axes); }

IdxFile open_idx(const std::filesystem::path& path, std::size_t axes) {
  IdxFile out;
  out.file = MappedFile::open(path);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(out.file->data());
  const std::size_t size = out.file->size(), header = 4 * (1 + axes);
  const char* hint = unpacking_hint({reinterpret_cast<const char*>(bytes), size});
  check(*hint == '\0', "idx: ", path.string(), " is no IDX file", hint);
  check(size >= header, "idx: ", path.string(), ": has ", size, " bytes, expected a header of ", header);
  const auto number = [bytes](std::size_t index) {
    const std::uint8_t* b = bytes + 4 * index;
    return std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 | std::uint32_t{b[3]};
  };
  check(number(0) == magic_of(axes), "idx: ", path.string(), ": begins with ", hex(number(0)), ", expected ",
        hex(magic_of(axes)), " (unsigned bytes, ", axes, axes == 1 ? " axis)" : " axes)");
  for (std::size_t axis = 0; axis < axes; ++axis) out.sizes.push_back(number(1 + axis));
  check(out.sizes[0] > 0, "idx: ", path.string(), ": holds no examples");
  std::uint64_t each = 1;
  for (std::size_t axis = 1; axis < axes; ++axis) {
    check(out.sizes[axis] > 0 && out.sizes[axis] <= kMostPixels / each, "idx: ", path.string(), ": axis ", axis,
          " has size ", out.sizes[axis], ", expected images of 1 to ", kMostPixels, " pixels");
    each *= out.sizes[axis];
  }
  check(size - header == out.sizes[0] * each, "idx: ", path.string(), ": holds ", size - header,
        " values, expected the ", out.sizes[0] * each, " that its header says");
  out.values = bytes + header;
  return out;
}

/// How far along one axis: -most..most.
std::int64_t shift_of(std::uint64_t random, std::int64_t most) {
  return static_cast<std::int64_t>(random % static_cast<std::uint64_t>(2 * most + 1)) - most;
}

}  // namespace

LabelledImages LabelledImages::open(const std::filesystem::path& images, const std::filesystem::path& labels) {
  const IdxFile pixels = open_idx(images, 3), classes = open_idx(labels, 1);
  check(pixels.sizes[0] == classes.sizes[0], "labelled images: ", images.string(), " holds ", pixels.sizes[0],
        " images, ", labels.string(), " ", classes.sizes[0], " labels, expected as many");
  LabelledImages out;
  out.image_file_ = pixels.file;
  out.label_file_ = classes.file;
  out.pixels_ = pixels.values;
  out.labels_ = classes.values;
  out.count_ = pixels.sizes[0];
  out.height_ = pixels.sizes[1];
  out.width_ = pixels.sizes[2];
  return out;
}

std::int64_t LabelledImages::classes() const { return 1 + *std::max_element(labels_, labels_ + count_); }

ImageScale LabelledImages::scale() const {
  std::array<std::uint64_t, 256> counts{};
  const std::int64_t pixels = count_ * height_ * width_;
  for (std::int64_t i = 0; i < pixels; ++i) ++counts[pixels_[i]];
  double mean = 0, square = 0;
  for (std::size_t value = 0; value < counts.size(); ++value) {
    const double grey = static_cast<double>(value) / 255;
    const double share = static_cast<double>(counts[value]) / static_cast<double>(pixels);
    mean += grey * share;
    square += grey * grey * share;
  }
  const double variance = square - mean * mean;
  return {mean, variance > 1e-12 ? std::sqrt(variance) : 1.0};
}

LabelledImageBatch LabelledImages::batch(std::span<const ExampleTurn> turns, const ImageScale& scale,
                                         std::int64_t most_shift) const {
  std::array<float, 256> grey{};
  for (std::size_t value = 0; value < grey.size(); ++value)
    grey[value] = static_cast<float>((static_cast<double>(value) / 255 - scale.mean) / scale.deviation);
  const auto rows = static_cast<std::int64_t>(turns.size());
  LabelledImageBatch out{Tensor::full({rows, 1, height_, width_}, grey[0], DType::f32, Device::cpu()),
                         Tensor::empty({rows}, DType::i64, Device::cpu())};
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto [example, random] = turns[static_cast<std::size_t>(row)];
    check(example >= 0 && example < count_, "labelled images: example ", example, " is none of ", count_);
    const std::uint8_t* from = pixels_ + example * height_ * width_;
    float* to = out.images.data<float>() + row * height_ * width_;
    const std::int64_t down = shift_of(random & 0xFFFFFFFF, most_shift), right = shift_of(random >> 32, most_shift);
    for (std::int64_t y = std::max<std::int64_t>(down, 0); y < std::min(height_, height_ + down); ++y)
      for (std::int64_t x = std::max<std::int64_t>(right, 0); x < std::min(width_, width_ + right); ++x)
        to[y * width_ + x] = grey[from[(y - down) * width_ + x - right]];
    out.labels.data<std::int64_t>()[row] = labels_[example];
  }
  return out;
}

std::uint64_t LabelledImages::checksum() const {
  Checksum content;
  content.update(pixels_, static_cast<std::size_t>(count_ * height_ * width_));
  content.update(labels_, static_cast<std::size_t>(count_));
  return content.value();
}

}  // namespace switchyard::data
