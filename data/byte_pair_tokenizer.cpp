#include "data/byte_pair_tokenizer.h"

#include <limits>

#include "core/error.h"
#include "data/unicode.h"

namespace switchyard::data {
namespace {

enum class Kind { letter, number, space, other };

Kind kind_of(char32_t c) {
  if (is_letter(c)) return Kind::letter;
  if (is_number(c)) return Kind::number;
  return is_space(c) ? Kind::space : Kind::other;
}

/// Characters of an English ending such as 's that `text` begins with; 0 when there is none.
std::size_t ending_length(std::u32string_view text) {
  for (const std::u32string_view ending : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"})
    if (text.starts_with(ending)) return ending.size();
  return 0;
}

/// Characters of the first word of `text`, which is not empty. The rule is the library's regular expression:
/// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t word_length(std::u32string_view text) {
  if (const std::size_t length = ending_length(text)) return length;
  const auto run = [text](std::size_t begin) {
    std::size_t end = begin;
    while (end < text.size() && kind_of(text[end]) == kind_of(text[begin])) ++end;
    return end;
  };
  const bool blank_before_word = text[0] == U' ' && text.size() > 1 && kind_of(text[1]) != Kind::space;
  if (blank_before_word) return run(1);
  const std::size_t end = run(0);
  // The last of several blanks belongs to what follows.
  return kind_of(text[0]) == Kind::space && end > 1 && end < text.size() ? end - 1 : end;
}

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}

}  // namespace

BytePairTokenizer::BytePairTokenizer(BytePairOptions options)
    : pieces_(std::move(options.pieces)), fingerprint_(options.fingerprint) {
  require_unicode();
  std::unordered_map<std::string_view, std::int32_t> ids;
  for (std::int32_t id = 0; id < vocabulary_size(); ++id) ids.emplace(pieces_[static_cast<std::size_t>(id)], id);
  const auto id_of = [&](const std::string& piece) {
    const auto at = ids.find(piece);
    check(at != ids.end(), "byte pairs: the vocabulary of ", pieces_.size(), " pieces has no \"", piece, '"');
    return at->second;
  };
  separator_ = id_of(options.separator);
  for (std::size_t byte = 0; byte < ids_of_bytes_.size(); ++byte) {
    const auto at = ids.find(std::string(1, static_cast<char>(byte)));
    check(at != ids.end(), "byte pairs: the vocabulary of ", pieces_.size(), " pieces has none for byte ", byte);
    ids_of_bytes_[byte] = at->second;
  }
  for (const auto& [left, right] : options.merges)
    merges_.emplace(pair_of(id_of(left), id_of(right)), Merge{merges_.size(), id_of(left + right)});
}

void BytePairTokenizer::merge(std::vector<std::int32_t>& ids) const {
  while (true) {
    Merge best{std::numeric_limits<std::size_t>::max(), 0};
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto at = merges_.find(pair_of(ids[i], ids[i + 1]));
      if (at != merges_.end() && at->second.rank < best.rank) best = at->second;
    }
    if (best.rank == std::numeric_limits<std::size_t>::max()) return;
    std::size_t kept = 0;
    for (std::size_t i = 0; i < ids.size(); ++kept) {
      const auto at = i + 1 < ids.size() ? merges_.find(pair_of(ids[i], ids[i + 1])) : merges_.end();
      const bool joined = at != merges_.end() && at->second.rank == best.rank;
      ids[kept] = joined ? best.id : ids[i];
      i += joined ? 2 : 1;
    }
    ids.resize(kept);
  }
}

std::vector<std::int32_t> BytePairTokenizer::encode(std::string_view text) const {
  const std::u32string characters = code_points(text);
  std::vector<std::int32_t> ids, word;
  for (std::u32string_view rest = characters; !rest.empty();) {
    const std::size_t length = word_length(rest);
    word.clear();
    for (const char byte : utf8(rest.substr(0, length)))
      word.push_back(ids_of_bytes_[static_cast<unsigned char>(byte)]);
    merge(word);
    ids.insert(ids.end(), word.begin(), word.end());
    rest.remove_prefix(length);
  }
  return ids;
}

std::string BytePairTokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (const std::int32_t id : ids) {
    check(id >= 0 && id < vocabulary_size(), "byte pairs: token id ", id, " is not in 0..", vocabulary_size() - 1);
    text += pieces_[static_cast<std::size_t>(id)];
  }
  return text;
}

}  // namespace switchyard::data
