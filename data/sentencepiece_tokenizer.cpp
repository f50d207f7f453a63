#include "core/error.h"
#include "data/corpus.h"
#include "data/tokenizer.h"

#ifdef SWITCHYARD_WITH_SENTENCEPIECE

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <unordered_map>

#include "core/io/atomic_file.h"
#include "core/io/checksum.h"
#include "core/io/mapped_file.h"

namespace switchyard::data {
namespace {

constexpr std::size_t kMaxLineBytes = 4096;  // SentencePiece ignores longer sentences

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::filesystem::path& path) {
    const auto file = MappedFile::open(path);
    const std::string_view bytes(reinterpret_cast<const char*>(file->data()), file->size());
    check(!bytes.empty() && processor_.LoadFromSerializedProto(bytes).ok(), "sentencepiece: ", path.string(),
          " is not a SentencePiece model");
    check(processor_.eos_id() >= 0, "sentencepiece: ", path.string(),
          " has no end-of-sentence piece, which is needed as document separator (train it with --eos_id)");
    fingerprint_ = checksum(bytes);
  }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode(text, &ids);
    check(status.ok(), "sentencepiece: cannot encode ", text.size(), " bytes: ", status.message());
    return {ids.begin(), ids.end()};
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    for (const std::int32_t id : ids)
      check(id >= 0 && id < vocabulary_size(), "sentencepiece: token id ", id, " is not in 0..", vocabulary_size() - 1);
    std::string text;
    const auto status = processor_.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
    check(status.ok(), "sentencepiece: cannot decode ", ids.size(), " ids: ", status.message());
    return text;
  }

  std::int32_t vocabulary_size() const override { return processor_.GetPieceSize(); }
  std::int32_t separator() const override { return processor_.eos_id(); }
  std::string name() const override { return "sentencepiece"; }
  std::uint64_t fingerprint() const override { return fingerprint_; }

 private:
  sentencepiece::SentencePieceProcessor processor_;
  std::uint64_t fingerprint_ = 0;
};

/// True for every byte of a UTF-8 character but its first.
bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

/// Feeds the trainer one line at a time; documents are mapped one file at a time.
class LineIterator : public sentencepiece::SentenceIterator {
 public:
  explicit LineIterator(const Corpus& corpus) : corpus_(corpus) {
    open_document();
    Next();
  }

  bool done() const override { return document_ == corpus_.documents().size(); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    while (!done()) {
      while (position_ < text_.size()) {
        const std::size_t rest = std::min(text_.find('\n', position_), text_.size()) - position_;
        std::size_t bytes = std::min(rest, kMaxLineBytes);
        while (bytes < rest && bytes > 0 && is_continuation(text_[position_ + bytes])) --bytes;
        if (bytes == 0 && rest > 0) bytes = std::min(rest, kMaxLineBytes);  // not UTF-8
        line_ = text_.substr(position_, bytes);
        position_ += bytes + (bytes == rest ? 1 : 0);
        if (!line_.empty()) return;
      }
      ++document_;
      open_document();
    }
  }

 private:
  void open_document() {
    position_ = 0;
    if (!done()) text_ = reader_.text(document_);
  }

  const Corpus& corpus_;
  CorpusReader reader_{corpus_};
  std::size_t document_ = 0, position_ = 0;
  std::string_view text_;
  std::string line_;
};

}  // namespace

void train_sentencepiece(const Corpus& corpus, const std::filesystem::path& model_path,
                         const SentencePieceOptions& options) {
  check(options.model_type == "unigram" || options.model_type == "bpe", "sentencepiece: model type '",
        options.model_type, "', expected unigram or bpe");
  check(options.vocabulary_size > 0, "sentencepiece: vocabulary size ", options.vocabulary_size, " is not positive");
  const std::unordered_map<std::string, std::string> settings = {
      {"model_type", options.model_type},
      {"vocab_size", std::to_string(options.vocabulary_size)},
      {"input_sentence_size", std::to_string(options.max_sentences)},
      {"max_sentence_length", std::to_string(kMaxLineBytes)},
      {"byte_fallback", "true"},
      {"character_coverage", "0.9995"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"unk_id", "0"},
      {"eos_id", "1"},
      {"bos_id", "-1"},
      {"pad_id", "-1"},
      {"minloglevel", "1"},
  };
  sentencepiece::SetRandomGeneratorSeed(1);  // which lines are drawn
  LineIterator lines(corpus);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &lines, &model);
  check(status.ok(), "sentencepiece: cannot train ", options.vocabulary_size, " pieces: ", status.message());
  write_file(model_path, model);
}

std::shared_ptr<const Tokenizer> load_sentencepiece(const std::filesystem::path& model_path) {
  return std::make_shared<SentencePieceTokenizer>(model_path);
}

bool has_sentencepiece() { return true; }

}  // namespace switchyard::data

#else

namespace switchyard::data {
namespace {

constexpr const char* kMissing =
    "sentencepiece: this program was built without SentencePiece: apt-get install libsentencepiece-dev, then configure "
    "again with -DSWITCHYARD_SENTENCEPIECE=ON";

}  // namespace

void train_sentencepiece(const Corpus&, const std::filesystem::path&, const SentencePieceOptions&) { fail(kMissing); }

std::shared_ptr<const Tokenizer> load_sentencepiece(const std::filesystem::path&) { fail(kMissing); }

bool has_sentencepiece() { return false; }

}  // namespace switchyard::data

#endif
