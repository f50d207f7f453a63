#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "data/example_order.h"
#include "data/tokenizer.h"

namespace switchyard::data {

/// Texts with a class each.
struct LabelledTexts {
  std::vector<std::string> texts;
  std::vector<std::int64_t> labels;  ///< of each text, a number of `classes`
  std::vector<std::string> classes;  ///< names, in the order of their numbers
};

/// Reads files of one example a line: `label<TAB>text`. The classes are the labels that occur, sorted, or `classes`
/// where that is not empty. Throws Error naming file and line: a line without tab, without label or without text, a
/// label that is none of `classes`, a file that is packed or holds zero bytes; and for files without any example.
LabelledTexts read_labelled_texts(const std::vector<std::filesystem::path>& files,
                                  const std::vector<std::string>& classes = {});

/// Texts of one length, each in the tokenizer's frame, shorter ones filled up with the separator.
struct LabelledTextBatch {
  Tensor tokens;   ///< i64 [batch, context]
  Tensor padding;  ///< bool [batch, context], true where there is no token
  Tensor labels;   ///< i64 [batch]
};

/// Labelled texts as tokens, kept in memory, cut to what fits `context`: of longer texts the last tokens stay, where
/// a review comes to its verdict.
class TextExamples {
 public:
  /// Throws Error for a context in which the frame leaves no room.
  TextExamples(const LabelledTexts& texts, const Tokenizer& tokenizer, std::int64_t context);

  std::int64_t size() const { return static_cast<std::int64_t>(labels_.size()); }
  /// On the CPU.
  LabelledTextBatch batch(std::span<const ExampleTurn> turns) const;
  /// Of tokens and labels.
  std::uint64_t checksum() const { return checksum_; }

 private:
  std::int64_t context_, separator_;
  Frame frame_;
  std::vector<std::vector<std::int32_t>> tokens_;
  std::vector<std::int64_t> labels_;
  std::uint64_t checksum_ = 0;
};

}  // namespace switchyard::data
