#pragma once

#include <array>
#include <unordered_map>
#include <utility>

#include "data/tokenizer.h"

namespace switchyard::data {

struct BytePairOptions {
  std::vector<std::string> pieces;  ///< bytes of each id
  /// Pieces that are joined, {left, right}, the most urgent first. What they make is a piece too.
  std::vector<std::pair<std::string, std::string>> merges;
  std::string separator = "<|endoftext|>";  ///< the piece that ends a document and stands for no text
  std::uint64_t fingerprint = 0;            ///< of the file that all this is from
};

/// GPT-2's tokenizer (Radford et al., 2019). A text is split into words, numbers and runs of other marks, each with the
/// blank before it, and what blanks are left. Of each the bytes are joined in pairs, the earliest merge that applies
/// first. UTF-8 survives encoding and decoding; each byte that is part of no character becomes U+FFFD. Text that looks
/// like the separator is text like any other.
class BytePairTokenizer : public Tokenizer {
 public:
  /// Throws Error where a byte, a part of a merge, what it makes or the separator is no piece, and where the program
  /// was built without Unicode's tables.
  explicit BytePairTokenizer(BytePairOptions options);

  std::vector<std::int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  std::int32_t vocabulary_size() const override { return static_cast<std::int32_t>(pieces_.size()); }
  std::int32_t separator() const override { return separator_; }
  std::string name() const override { return "byte_pair"; }
  std::uint64_t fingerprint() const override { return fingerprint_; }

 private:
  struct Merge {
    std::size_t rank;
    std::int32_t id;  ///< of both together
  };

  /// Joins neighbours among `ids` until no merge applies.
  void merge(std::vector<std::int32_t>& ids) const;

  std::vector<std::string> pieces_;
  std::int32_t separator_;
  std::uint64_t fingerprint_;
  std::array<std::int32_t, 256> ids_of_bytes_{};
  std::unordered_map<std::uint64_t, Merge> merges_;  // by both ids
};

}  // namespace switchyard::data
