#include "data/unicode.h"

#include <gtest/gtest.h>

#include "tests/support/errors.h"

namespace switchyard::data {
namespace {

class Unicode : public ::testing::Test {
 protected:
  void SetUp() override {
    if (has_unicode()) return;
    EXPECT_ERROR(code_points("a"), "unicode: this program was built without utf8proc: apt-get install libutf8proc-dev");
    GTEST_SKIP() << "built without utf8proc";
  }
};

TEST_F(Unicode, EveryCodePointThereAndBack) {
  for (char32_t c = 0; c < 0x110000; c += c < 0x1000 ? 1 : 97) {
    if (c >= 0xD800 && c < 0xE000) continue;  // surrogates are no characters
    ASSERT_EQ(code_points(utf8(std::u32string(1, c))), std::u32string(1, c)) << static_cast<std::uint32_t>(c);
  }
}

TEST_F(Unicode, BytesThatAreNoCharacterAreReplacedOneByOne) {
  EXPECT_EQ(code_points("a\xFFz\xC3"), U"a\uFFFDz\uFFFD");
  EXPECT_EQ(code_points("\xE2\x82q"), U"\uFFFD\uFFFDq");          // broken off
  EXPECT_EQ(code_points("\xC0\xAF"), U"\uFFFD\uFFFD");            // longer than needed
  EXPECT_EQ(code_points("\xED\xA0\x80"), U"\uFFFD\uFFFD\uFFFD");  // a surrogate
}

TEST_F(Unicode, CategoriesAsTheStandardHasThem) {
  for (const char32_t c : U"aZ\u00E9\u0416\u05D0\u4E2D\u01C5\u02B0") EXPECT_EQ(is_letter(c), c != 0);
  for (const char32_t c : U"07\u00B2\u0667\u2167") EXPECT_EQ(is_number(c), c != 0);
  for (const char32_t c : U"!_-\u00AB\u2026\u3002") EXPECT_EQ(is_punctuation(c), c != 0);
  for (const char32_t c : U"$+<=>^`|~\u20AC") EXPECT_FALSE(is_punctuation(c));
  for (const char32_t c : U"\u0007\u00AD\u200B\uFEFF\uE000\u0085") EXPECT_TRUE(is_control(c));
  for (const char32_t c : U"\u0301\u05B8\u0E31") EXPECT_EQ(is_nonspacing_mark(c), c != 0);
  EXPECT_FALSE(is_letter(U'5') || is_number(U'a') || is_space(U'a') || is_control(U'a') || is_nonspacing_mark(U'a'));
}

TEST_F(Unicode, SpacesAreThoseOfTheStandard) {
  std::u32string spaces;
  for (char32_t c = 0; c < 0x110000; ++c)
    if (is_space(c)) spaces += c;
  EXPECT_EQ(spaces,
            U"\t\n\v\f\r \u0085\u00A0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200A"
            U"\u2028\u2029\u202F\u205F\u3000");
}

TEST_F(Unicode, DecomposesAndLowers) {
  EXPECT_EQ(decomposed(U"\u00E9\u1E69\uAC01"), U"e\u0301s\u0323\u0307\u1100\u1161\u11A8");
  EXPECT_EQ(decomposed(U"s\u0307\u0323"), U"s\u0323\u0307");  // in the order of their classes
  EXPECT_EQ(decomposed(U"\uFB01"), U"\uFB01");                // a ligature is another matter
  EXPECT_EQ(decomposed(std::u32string(500, U'\u1FA7')).size(), 2000u);
  EXPECT_EQ(decomposed(U""), U"");
  EXPECT_EQ(lower_case(U"A\u00C9\u0416\u03A3\u0130z"), U"a\u00E9\u0436\u03C3i\u0307z");
}

}  // namespace
}  // namespace switchyard::data
