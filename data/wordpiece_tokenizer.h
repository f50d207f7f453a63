#pragma once

#include <unordered_map>

#include "data/tokenizer.h"

namespace switchyard::data {

struct WordPieceOptions {
  std::vector<std::string> pieces;  ///< by id; those that go on a word begin with ##
  bool lower_case = true;
  bool strip_accents = true;
  bool space_chinese = true;        ///< each Chinese character is a word
  std::size_t longest_word = 100;   ///< characters; a longer word is unknown
  std::string unknown = "[UNK]";    ///< a word that pieces cannot make up
  std::string first = "[CLS]";      ///< begins a text to be classified
  std::string separator = "[SEP]";  ///< ends it
  std::uint64_t fingerprint = 0;    ///< of the file that all this is from
};

/// BERT's tokenizer (Devlin et al., 2019). A text is cleaned of control characters, split into words at blanks and
/// around each punctuation mark, and a word into the longest piece that it begins with, the longest that it goes on
/// with, and so on. Text that looks like a piece in brackets, such as "[SEP]", is text like any other.
/// What counts as an accent or a mark is as utf8proc's version of Unicode has it; the library's own tables are older,
/// so that it treats some 800 code points, rare ones, otherwise.
class WordPieceTokenizer : public Tokenizer {
 public:
  /// Throws Error where one of the named pieces is missing, and where the program was built without Unicode's tables.
  explicit WordPieceTokenizer(WordPieceOptions options);

  std::vector<std::int32_t> encode(std::string_view text) const override;
  /// Words with one blank between: what was between them in the text, case and accents are lost.
  std::string decode(std::span<const std::int32_t> ids) const override;
  std::int32_t vocabulary_size() const override { return static_cast<std::int32_t>(options_.pieces.size()); }
  std::int32_t separator() const override { return separator_; }
  Frame frame() const override { return {{first_}, {separator_}}; }
  std::string name() const override { return "wordpiece"; }
  std::uint64_t fingerprint() const override { return options_.fingerprint; }

 private:
  std::int32_t id_of(const std::string& piece) const;
  std::u32string normalized(std::string_view text) const;
  void encode_word(std::u32string_view word, std::vector<std::int32_t>& ids) const;

  WordPieceOptions options_;
  std::unordered_map<std::string, std::int32_t> ids_;
  std::int32_t unknown_ = 0, first_ = 0, separator_ = 0;
};

}  // namespace switchyard::data
