#pragma once

#include <string>
#include <string_view>

/// What the Unicode standard says of characters, for tokenizers that depend on it. From utf8proc; where this program
/// was built without it, all but has_unicode() throw Error saying how to build with it.
namespace switchyard::data {

/// Whether this program was built with utf8proc.
bool has_unicode();
/// For what is of no use without.
void require_unicode();

/// UTF-8 as code points; each byte that is part of no character becomes U+FFFD.
std::u32string code_points(std::string_view text);
std::string utf8(std::u32string_view characters);

bool is_letter(char32_t character);
bool is_number(char32_t character);
/// Of the standard's categories P*, so not the ASCII symbols $ + < = > ^ ` | ~.
bool is_punctuation(char32_t character);
/// The standard's White_Space: blanks and line breaks of all kinds.
bool is_space(char32_t character);
/// Control and format characters, and those for private use.
bool is_control(char32_t character);
/// An accent or the like, which takes no place of its own.
bool is_nonspacing_mark(char32_t character);

/// Canonical decomposition (NFD): accents become characters of their own.
std::u32string decomposed(std::u32string_view text);
/// Each letter by itself, in whatever word it is; I with a dot becomes i and a dot above.
std::u32string lower_case(std::u32string_view text);

}  // namespace switchyard::data
