#include "data/wordpiece_tokenizer.h"

#include "core/error.h"
#include "data/unicode.h"

namespace switchyard::data {
namespace {

constexpr std::string_view kGoesOn = "##";

/// What BERT calls Chinese: the blocks of ideographs, no kana or hangul, which are written with blanks or in words.
bool is_chinese(char32_t c) {
  constexpr char32_t kBlocks[][2] = {{0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F},
                                     {0x2B740, 0x2B81F}, {0x2B820, 0x2CEAF}, {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F}};
  for (const auto& [first, last] : kBlocks)
    if (first <= c && c <= last) return true;
  return false;
}

/// BERT counts all of ASCII that is neither letter, digit nor blank.
bool splits_words(char32_t c) {
  const bool ascii =
      (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
  return ascii || is_punctuation(c);
}

}  // namespace

WordPieceTokenizer::WordPieceTokenizer(WordPieceOptions options) : options_(std::move(options)) {
  require_unicode();
  for (std::int32_t id = 0; id < vocabulary_size(); ++id)
    ids_.emplace(options_.pieces[static_cast<std::size_t>(id)], id);
  unknown_ = id_of(options_.unknown);
  first_ = id_of(options_.first);
  separator_ = id_of(options_.separator);
}

std::int32_t WordPieceTokenizer::id_of(const std::string& piece) const {
  const auto at = ids_.find(piece);
  check(at != ids_.end(), "wordpiece: the vocabulary of ", ids_.size(), " pieces has no ", piece);
  return at->second;
}

std::u32string WordPieceTokenizer::normalized(std::string_view text) const {
  std::u32string clean;
  for (const char32_t c : code_points(text)) {
    const bool kept_control = c == U'\t' || c == U'\n' || c == U'\r';
    if (kept_control || (is_space(c) && !is_control(c))) clean += U' ';
    else if (options_.space_chinese && is_chinese(c)) clean.append({U' ', c, U' '});
    else if (c != 0xFFFD && !is_control(c)) clean += c;
  }
  if (options_.strip_accents) {
    clean = decomposed(clean);
    std::erase_if(clean, is_nonspacing_mark);
  }
  return options_.lower_case ? lower_case(clean) : clean;
}

void WordPieceTokenizer::encode_word(std::u32string_view word, std::vector<std::int32_t>& ids) const {
  const std::size_t before = ids.size();
  bool known = word.size() <= options_.longest_word;
  for (std::size_t begin = 0; known && begin < word.size();) {
    std::size_t end = word.size();
    const auto piece = [&] { return std::string(begin > 0 ? kGoesOn : "") + utf8(word.substr(begin, end - begin)); };
    auto at = ids_.find(piece());
    while (at == ids_.end() && --end > begin) at = ids_.find(piece());
    known = end > begin;
    if (known) ids.push_back(at->second);
    begin = end;
  }
  if (known) return;
  ids.resize(before);
  ids.push_back(unknown_);
}

std::vector<std::int32_t> WordPieceTokenizer::encode(std::string_view text) const {
  const std::u32string characters = normalized(text);
  std::vector<std::int32_t> ids;
  for (std::size_t begin = 0; begin < characters.size();) {
    std::size_t end = begin + 1;
    if (!is_space(characters[begin])) {
      if (!splits_words(characters[begin]))
        while (end < characters.size() && !is_space(characters[end]) && !splits_words(characters[end])) ++end;
      encode_word(std::u32string_view(characters).substr(begin, end - begin), ids);
    }
    begin = end;
  }
  return ids;
}

std::string WordPieceTokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (const std::int32_t id : ids) {
    check(id >= 0 && id < vocabulary_size(), "wordpiece: token id ", id, " is not in 0..", vocabulary_size() - 1);
    const std::string_view piece = options_.pieces[static_cast<std::size_t>(id)];
    if (piece.starts_with(kGoesOn)) text += piece.substr(kGoesOn.size());
    else text.append(text.empty() ? "" : " ").append(piece);
  }
  return text;
}

}  // namespace switchyard::data
