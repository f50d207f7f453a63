#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/io/mapped_file.h"
#include "data/corpus.h"
#include "data/tokenizer.h"

namespace switchyard::data {

/// A corpus as token ids, memory mapped. On disk (little-endian): a header of 192 bytes (see token_file.cpp); the ids,
/// 2 bytes each where the vocabulary allows, else 4, every document ended by the separator; the first token of each
/// document as 64-bit numbers. XXH64 checksums cover the header and everything behind it.
class TokenFile {
 public:
  /// Throws Error naming the path and what is wrong: not a token file, truncated, damaged, or made with another
  /// tokenizer than `tokenizer` (null: any). Reads the whole file once to verify its checksum.
  static TokenFile open(const std::filesystem::path& path, const Tokenizer* tokenizer = nullptr);

  /// Number of tokens, separators included.
  std::int64_t size() const { return token_count_; }
  std::int32_t operator[](std::int64_t index) const;
  /// Copies tokens begin, begin + 1, ... to `out`. Behind the last token the file starts again from its first.
  void read(std::int64_t begin, std::int64_t count, std::int64_t* out) const;

  std::int64_t document_count() const { return document_count_; }
  /// First token of a document; document_begin(document_count()) is size(). The last token is the separator.
  std::int64_t document_begin(std::int64_t document) const;

  std::int32_t vocabulary_size() const { return vocabulary_size_; }
  std::int32_t separator() const { return separator_; }
  const std::string& tokenizer_name() const { return tokenizer_name_; }
  /// Checksum of the content: two files of the same tokens have the same one.
  std::uint64_t checksum() const { return checksum_; }
  const std::filesystem::path& path() const { return file_->path(); }

 private:
  TokenFile() = default;
  void verify() const;
  template <class T>
  std::span<const T> ids() const;

  std::shared_ptr<MappedFile> file_;
  std::int64_t token_count_ = 0, document_count_ = 0;
  std::int32_t vocabulary_size_ = 0, separator_ = 0;
  std::size_t token_bytes_ = 2, documents_at_ = 0;
  std::uint64_t checksum_ = 0;
  std::string tokenizer_name_;
};

/// Writes a token file document by document, in memory that does not grow with the text (8 bytes for each document).
/// The file appears whole with commit(), or not at all.
class TokenFileWriter {
 public:
  TokenFileWriter(const std::filesystem::path& path, std::shared_ptr<const Tokenizer> tokenizer);

  /// Throws Error when the text encodes to the separator somewhere; `name` stands for the document in the message.
  void add_document(std::string_view text, const std::string& name = "a document");
  /// Throws Error when no document was added.
  void commit();

 private:
  void append_ids(const std::vector<std::int32_t>& ids, const std::string& name);

  AtomicFile file_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::size_t token_bytes_;
  std::uint64_t token_count_ = 0;
  std::vector<std::uint64_t> document_begins_;
  Checksum checksum_;
  std::vector<std::byte> packed_;
};

/// Encodes a whole corpus.
void write_token_file(const std::filesystem::path& path, const Corpus& corpus,
                      std::shared_ptr<const Tokenizer> tokenizer);

}  // namespace switchyard::data
