#include "core/rng.h"

#include "core/philox.h"
#include "tests/support/close.h"

namespace switchyard {
namespace {

using Words = std::array<std::uint32_t, 4>;

// The known answers published with Random123 (kat_vectors, philox4x32 with 10 rounds).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, ElementsAndUniforms) {
  for (std::uint64_t i = 0; i < 9; ++i) EXPECT_EQ(philox_element(7, 100, i), philox(7, 100 + i / 4)[i % 4]);
  EXPECT_EQ(uniform_from_bits(0), 0.0f);
  EXPECT_EQ(uniform_from_bits(0xffffffff), 1.0f - 0x1p-24f);
  EXPECT_EQ(uniform_from_bits(0x80000000), 0.5f);
}

TEST(Generator, StretchesNeverOverlap) {
  Generator generator(5, default_device());
  const RandomStream first = generator.next(5), second = generator.next(1), third = generator.next(0);
  EXPECT_EQ(first.offset, 0u);
  EXPECT_EQ(second.offset, 2u);
  EXPECT_EQ(third.offset, 3u);
  EXPECT_EQ(first.seed, 5u);
  EXPECT_EQ(generator.state(), (GeneratorState{5, 3}));
  generator.end_step();
  EXPECT_EQ(generator.step_offset(), 0u);
  EXPECT_EQ(generator.state(), (GeneratorState{5, 3}));
  EXPECT_EQ(generator.next(4).base.item<std::int64_t>(), 3);
}

TEST(Generator, StateContinues) {
  Generator generator(9, default_device());
  generator.next(100);
  generator.end_step();
  generator.next(10);
  const GeneratorState state = generator.state();
  Generator other(1, default_device());
  other.set_state(state);
  EXPECT_EQ(other.state(), state);
  EXPECT_EQ(other.state().position, 28u);
}

TEST(Generator, SeedAllRestartsTheDefault) {
  seed_all(3);
  Generator& generator = default_generator(default_device());
  EXPECT_EQ(&generator, &default_generator(default_device()));
  generator.next(16);
  EXPECT_EQ(generator.state(), (GeneratorState{3, 4}));
  seed_all(4);
  EXPECT_EQ(generator.state(), (GeneratorState{4, 0}));
}

}  // namespace
}  // namespace switchyard
