#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard::data {

class Corpus;

/// The ids around a text that a classifier reads.
struct Frame {
  std::vector<std::int32_t> before, after;
};

/// Turns text into token ids 0 .. vocabulary_size() - 1 and back. Immutable, so threads may share one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  /// The text of the ids; throws Error for an id outside the vocabulary.
  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;
  virtual std::int32_t vocabulary_size() const = 0;
  /// The id that ends every document. It never stands for text inside one.
  virtual std::int32_t separator() const = 0;
  /// The separator before the text, so that there is something to read of an empty one, unless models that come with
  /// the tokenizer are used to another.
  virtual Frame frame() const { return {{separator()}, {}}; }
  /// "bytes", "sentencepiece", "wordpiece" or "byte_pair".
  virtual std::string name() const = 0;
  /// Hash of everything that decides the ids: token files carry it to refuse a tokenizer they were not made with.
  virtual std::uint64_t fingerprint() const = 0;
};

/// One id per byte: 256 ids, any text, lossless. Byte 0, which occurs in no text file, is the document separator.
class ByteTokenizer : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  std::int32_t vocabulary_size() const override { return 256; }
  std::int32_t separator() const override { return 0; }
  std::string name() const override { return "bytes"; }
  std::uint64_t fingerprint() const override;
};

struct SentencePieceOptions {
  std::int32_t vocabulary_size = 8000;
  std::string model_type = "unigram";      ///< or "bpe"
  std::int64_t max_sentences = 1'000'000;  ///< lines to learn from, drawn from all lines; bounds memory
};

/// Learns a SentencePiece model from the lines of a corpus and writes it to `model_path`. Bytes that no piece covers
/// have pieces of their own and white space is kept as it is, so UTF-8 text survives encoding and decoding.
/// Throws Error where SentencePiece was not built in.
void train_sentencepiece(const Corpus& corpus, const std::filesystem::path& model_path,
                         const SentencePieceOptions& options = {});

/// Reads a SentencePiece model, whose end-of-sentence piece becomes the separator. Throws Error where SentencePiece
/// was not built in, or the file is not such a model.
std::shared_ptr<const Tokenizer> load_sentencepiece(const std::filesystem::path& model_path);

/// True when this program can train and load SentencePiece models.
bool has_sentencepiece();

/// "bytes", or the path of a SentencePiece model (*.model).
std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& name_or_path);

}  // namespace switchyard::data
