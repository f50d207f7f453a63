#include "core/dtype.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/device.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

TEST(DType, NamesAndSizes) {
  EXPECT_EQ(name_of(DType::f32), "f32");
  EXPECT_EQ(name_of(DType::boolean), "bool");
  EXPECT_EQ(size_of(DType::f32), 4u);
  EXPECT_EQ(size_of(DType::f64), 8u);
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(DType::i32), 4u);
  EXPECT_EQ(size_of(DType::i64), 8u);
  EXPECT_EQ(size_of(DType::boolean), 1u);
  EXPECT_ERROR(dispatch_floating(DType::i32, "op", [](auto) {}),
               "op: expected a floating dtype (f32, f64, bf16), got i32");
}

TEST(DType, Bfloat16RoundsToNearestEven) {
  // Every bfloat16, and the points between it and its upper neighbour.
  for (std::uint32_t bits = 0; bits < 0x7f80; ++bits) {
    bfloat16 low, high;
    low.bits = static_cast<std::uint16_t>(bits);
    high.bits = static_cast<std::uint16_t>(bits + 1);
    EXPECT_EQ(bfloat16(static_cast<float>(low)).bits, bits);
    const float tie = std::bit_cast<float>((bits << 16) | 0x8000u);
    EXPECT_EQ(bfloat16(tie).bits, bits % 2 == 0 ? low.bits : high.bits);
    EXPECT_EQ(bfloat16(std::nextafter(tie, 0.0f)).bits, low.bits);
    EXPECT_EQ(bfloat16(std::nextafter(tie, INFINITY)).bits, high.bits);
    EXPECT_EQ(bfloat16(-tie).bits, (bits % 2 == 0 ? low.bits : high.bits) | 0x8000);
  }
  EXPECT_TRUE(std::isnan(static_cast<float>(bfloat16(NAN))));
  EXPECT_TRUE(std::isnan(static_cast<float>(bfloat16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(static_cast<float>(bfloat16(-INFINITY)), -INFINITY);
}

TEST(Device, Parses) {
  EXPECT_EQ(Device::parse("cpu"), Device::cpu());
  EXPECT_EQ(Device::parse("cuda"), Device::cuda(0));
  EXPECT_EQ(Device::parse("cuda:3"), Device::cuda(3));
  for (const char* text : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cpu:0", "cuda:99999999999"})
    EXPECT_ERROR(Device::parse(text), text);
}

}  // namespace
}  // namespace switchyard
