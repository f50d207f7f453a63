#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "core/io/mapped_file.h"
#include "core/tensor.h"
#include "data/example_order.h"

namespace switchyard::data {

/// What grey values 0..1 are taken to: (value - mean) / deviation.
struct ImageScale {
  double mean = 0;
  double deviation = 1;
};

struct LabelledImageBatch {
  Tensor images;  ///< f32 [batch, 1, height, width]
  Tensor labels;  ///< i64 [batch]
};

/// Grey images with a class each, mapped from a pair of IDX files (the format of MNIST): big-endian 32-bit numbers (a
/// magic number, the number of examples, for images also height and width), then unsigned bytes.
class LabelledImages {
 public:
  /// Throws Error naming the file and what is wrong with it: packed, another magic number, shorter or longer than its
  /// header says, without examples; or that the two files differ in their number of examples.
  static LabelledImages open(const std::filesystem::path& images, const std::filesystem::path& labels);

  std::int64_t size() const { return count_; }
  std::int64_t height() const { return height_; }
  std::int64_t width() const { return width_; }
  /// One more than the largest label.
  std::int64_t classes() const;
  /// Mean and deviation of all pixels; a deviation of 1 where all are equal.
  ImageScale scale() const;
  /// On the CPU. Each image is moved by up to `most_shift` pixels along both axes, as its turn's random number says;
  /// what comes in at the edges has grey value 0.
  LabelledImageBatch batch(std::span<const ExampleTurn> turns, const ImageScale& scale,
                           std::int64_t most_shift = 0) const;
  /// Of pixels and labels.
  std::uint64_t checksum() const;

 private:
  std::shared_ptr<MappedFile> image_file_, label_file_;
  const std::uint8_t* pixels_ = nullptr;  // [count, height, width]
  const std::uint8_t* labels_ = nullptr;  // [count]
  std::int64_t count_ = 0, height_ = 0, width_ = 0;
};

}  // namespace switchyard::data
