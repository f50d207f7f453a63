#include "data/unicode.h"

#include "core/error.h"

#ifdef SWITCHYARD_WITH_UTF8PROC

#include <utf8proc.h>

#include <vector>

namespace switchyard::data {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

/// Whether the character's category lies between two of utf8proc's, which are numbered in groups.
bool has_category(char32_t character, utf8proc_category_t first, utf8proc_category_t last) {
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(character));
  return first <= category && category <= last;
}

}  // namespace

bool has_unicode() { return true; }

void require_unicode() {}

std::u32string code_points(std::string_view text) {
  std::u32string out;
  while (!text.empty()) {
    utf8proc_int32_t character = 0;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const auto used = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size()), &character);
    out += used > 0 ? static_cast<char32_t>(character) : kReplacement;
    text.remove_prefix(used > 0 ? static_cast<std::size_t>(used) : 1);
  }
  return out;
}

std::string utf8(std::u32string_view characters) {
  std::string out;
  for (const char32_t character : characters) {
    utf8proc_uint8_t bytes[4];
    const auto count = utf8proc_encode_char(static_cast<utf8proc_int32_t>(character), bytes);
    out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(count));
  }
  return out;
}

bool is_letter(char32_t character) { return has_category(character, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LO); }

bool is_number(char32_t character) { return has_category(character, UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO); }

bool is_punctuation(char32_t character) { return has_category(character, UTF8PROC_CATEGORY_PC, UTF8PROC_CATEGORY_PO); }

bool is_space(char32_t character) {
  return (character >= '\t' && character <= '\r') || character == 0x85 ||
         has_category(character, UTF8PROC_CATEGORY_ZS, UTF8PROC_CATEGORY_ZP);
}

bool is_control(char32_t character) { return has_category(character, UTF8PROC_CATEGORY_CC, UTF8PROC_CATEGORY_CO); }

bool is_nonspacing_mark(char32_t character) {
  return has_category(character, UTF8PROC_CATEGORY_MN, UTF8PROC_CATEGORY_MN);
}

std::u32string decomposed(std::u32string_view text) {
  const std::string bytes = utf8(text);
  const auto into = [&](std::vector<utf8proc_int32_t>& characters) {
    const auto count = utf8proc_decompose(reinterpret_cast<const utf8proc_uint8_t*>(bytes.data()),
                                          static_cast<utf8proc_ssize_t>(bytes.size()), characters.data(),
                                          static_cast<utf8proc_ssize_t>(characters.size()),
                                          static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE));
    check(count >= 0, "unicode: cannot decompose ", bytes.size(), " bytes: ", utf8proc_errmsg(count));
    return static_cast<std::size_t>(count);
  };
  std::vector<utf8proc_int32_t> characters(2 * text.size());
  const std::size_t count = into(characters);
  const bool fitted = count <= characters.size();
  characters.resize(count);
  if (!fitted) into(characters);
  return {characters.begin(), characters.end()};
}

std::u32string lower_case(std::u32string_view text) {
  std::u32string out;
  for (const char32_t character : text) {
    if (character == U'\u0130') out += U"i\u0307";  // the only letter that becomes two characters
    else out += static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(character)));
  }
  return out;
}

}  // namespace switchyard::data

#else

namespace switchyard::data {
namespace {

constexpr const char* kMissing =
    "unicode: this program was built without utf8proc: apt-get install libutf8proc-dev, then configure again with "
    "-DSWITCHYARD_UTF8PROC=ON";

}  // namespace

bool has_unicode() { return false; }

void require_unicode() { fail(kMissing); }
std::u32string code_points(std::string_view) { fail(kMissing); }
std::string utf8(std::u32string_view) { fail(kMissing); }
bool is_letter(char32_t) { fail(kMissing); }
bool is_number(char32_t) { fail(kMissing); }
bool is_punctuation(char32_t) { fail(kMissing); }
bool is_space(char32_t) { fail(kMissing); }
bool is_control(char32_t) { fail(kMissing); }
bool is_nonspacing_mark(char32_t) { fail(kMissing); }
std::u32string decomposed(std::u32string_view) { fail(kMissing); }
std::u32string lower_case(std::u32string_view) { fail(kMissing); }

}  // namespace switchyard::data

#endif
