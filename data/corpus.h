#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/io/mapped_file.h"

namespace switchyard::data {

/// A list of text documents in files or in memory. Only their places are kept; CorpusReader fetches the text.
///
/// In a file, a blank line and a line holding just `<|doc|>` separate two documents; line breaks at the end of the
/// file belong to none. Documents without text are left out. Text may be in any encoding without zero bytes.
class Corpus {
 public:
  struct Document {
    std::uint32_t source;
    std::uint64_t begin, end;  ///< bytes of the source
  };

  /// Files and folders. Of a folder, every text file in it is taken, in sorted order of their paths; hidden entries,
  /// folders named `build`, linked folders and files with zero bytes are skipped. A file given by itself must be a text
  /// file, unpacked. Throws Error naming the path when one cannot be read or nothing is found.
  static Corpus from_paths(const std::vector<std::filesystem::path>& paths);
  static Corpus from_text(std::string name, std::string text);
  /// The repository's own text, part of the program.
  static Corpus embedded();

  const std::vector<Document>& documents() const { return documents_; }
  /// Bytes of all documents.
  std::uint64_t bytes() const;
  /// The path or name of the file that document `index` lies in.
  const std::string& source_name(std::size_t index) const { return sources_[documents_.at(index).source].name; }
  std::size_t skipped_files() const { return skipped_files_; }
  /// One line: documents, bytes, files, files skipped.
  std::string summary() const;

  /// Splits off about `fraction` of the text for validation: whole documents, chosen by `seed`, where there are many;
  /// else the last lines of each. Returns {training, validation}; throws Error when either would be empty.
  std::pair<Corpus, Corpus> split(double fraction, std::uint64_t seed = 0) const;

 private:
  friend class CorpusReader;
  struct Source {
    std::string name;
    std::shared_ptr<const std::string> owned;  // keeps `text` alive where it is not part of the program
    std::string_view text;                     // empty for files, which are mapped when read
    std::uint64_t bytes = 0;
  };

  void add_file(const std::filesystem::path& path, bool skip_binary);
  void add_folder(const std::filesystem::path& folder);
  void add_source(Source source, std::string_view text);
  Corpus with_documents(std::vector<Document> documents) const;
  std::vector<bool> choose_documents(double fraction, std::uint64_t seed) const;

  std::vector<Source> sources_;
  std::vector<Document> documents_;
  std::size_t skipped_files_ = 0;
};

/// Fetches the text of a corpus' documents, with one file mapped at a time. Reading in order maps each file once.
class CorpusReader {
 public:
  /// The corpus must outlive the reader.
  explicit CorpusReader(const Corpus& corpus) : corpus_(corpus) {}
  /// Valid until the next call. Throws Error when the file has changed its size since the corpus was made.
  std::string_view text(std::size_t document);

 private:
  const Corpus& corpus_;
  std::shared_ptr<MappedFile> file_;
  std::uint32_t source_ = 0;
};

}  // namespace switchyard::data
