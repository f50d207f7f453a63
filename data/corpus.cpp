#include "data/corpus.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "core/error.h"
#include "data/embedded_corpus.h"
#include "data/packed_file.h"
#include "data/permutation.h"

namespace switchyard::data {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSeparator = "\n\n<|doc|>\n";
constexpr std::size_t kManyDocuments = 20;  // from here on validation takes whole documents

std::string_view text_of(const MappedFile& file) { return {reinterpret_cast<const char*>(file.data()), file.size()}; }

bool is_skipped(const fs::path& path, bool is_folder) {
  const std::string name = path.filename().string();
  return name.starts_with('.') || (is_folder && name == "build");
}

}  // namespace

Corpus Corpus::from_paths(const std::vector<fs::path>& paths) {
  check(!paths.empty(), "corpus: no files or folders given");
  Corpus corpus;
  for (const fs::path& path : paths) {
    std::error_code error;
    if (fs::is_directory(path, error)) corpus.add_folder(path);
    else corpus.add_file(path, false);
  }
  check(!corpus.documents_.empty(), "corpus: no text found in ", paths.front().string(),
        paths.size() > 1 ? " and the other paths given" : "", " (", corpus.skipped_files_, " files skipped)");
  return corpus;
}

Corpus Corpus::from_text(std::string name, std::string text) {
  Corpus corpus;
  const auto owned = std::make_shared<const std::string>(std::move(text));
  corpus.add_source({std::move(name), owned, *owned, owned->size()}, *owned);
  return corpus;
}

Corpus Corpus::embedded() {
  Corpus corpus;
  const std::string_view text = embedded_corpus_text();
  corpus.add_source({"the embedded corpus", nullptr, text, text.size()}, text);
  return corpus;
}

void Corpus::add_folder(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  fs::recursive_directory_iterator at(folder, error), end;
  while (!error && at != end) {
    std::error_code ignored;
    const bool is_folder = at->is_directory(ignored);
    if (is_skipped(at->path(), is_folder)) at.disable_recursion_pending();
    else if (!is_folder && at->is_regular_file(ignored)) files.push_back(at->path());
    at.increment(error);
  }
  check(!error, "corpus: cannot read the folder ", folder.string(), ": ", error.message());
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) add_file(file, true);
}

void Corpus::add_file(const fs::path& path, bool skip_binary) {
  const auto file = MappedFile::open(path);
  const std::string_view text = text_of(*file);
  const std::size_t zero = text.find('\0');
  if (zero != std::string_view::npos || *unpacking_hint(text) != '\0') {
    check(skip_binary, "corpus: ", path.string(), " is not a text file",
          zero == std::string_view::npos ? "" : " (it holds zero bytes)", unpacking_hint(text));
    ++skipped_files_;
    return;
  }
  add_source({path.string(), nullptr, {}, file->size()}, text);
}

void Corpus::add_source(Source source, std::string_view text) {
  while (text.ends_with('\n')) text.remove_suffix(1);
  const auto index = static_cast<std::uint32_t>(sources_.size());
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(kSeparator, begin), text.size());
    if (end > begin) documents_.push_back({index, begin, end});
    begin = end + kSeparator.size();
  }
  sources_.push_back(std::move(source));
}

std::uint64_t Corpus::bytes() const {
  std::uint64_t total = 0;
  for (const Document& document : documents_) total += document.end - document.begin;
  return total;
}

std::string Corpus::summary() const {
  std::vector<bool> used(sources_.size());
  for (const Document& document : documents_) used[document.source] = true;
  const auto files = std::count(used.begin(), used.end(), true);
  std::ostringstream out;
  out << documents_.size() << (documents_.size() == 1 ? " document, " : " documents, ") << bytes() << " bytes, from ";
  if (files == 1) out << source_name(0);
  else out << files << " files";
  if (skipped_files_ > 0) out << " (" << skipped_files_ << " files that are not text skipped)";
  return out.str();
}

Corpus Corpus::with_documents(std::vector<Document> documents) const {
  Corpus part;
  part.sources_ = sources_;
  part.documents_ = std::move(documents);
  return part;
}

// Documents in random order are taken while they fit; one that is much too large is passed over.
std::vector<bool> Corpus::choose_documents(double fraction, std::uint64_t seed) const {
  std::vector<bool> chosen(documents_.size());
  const double wanted = fraction * static_cast<double>(bytes());
  const Permutation order(documents_.size(), seed);
  double taken = 0;
  for (std::size_t i = 0; i < documents_.size() && taken < wanted; ++i) {
    const std::size_t index = order(i);
    const auto size = static_cast<double>(documents_[index].end - documents_[index].begin);
    if (taken + size > 1.25 * wanted) continue;
    chosen[index] = true;
    taken += size;
  }
  return chosen;
}

std::pair<Corpus, Corpus> Corpus::split(double fraction, std::uint64_t seed) const {
  check(fraction > 0 && fraction < 1, "corpus: validation fraction ", fraction, " is not between 0 and 1");
  std::vector<Document> training, validation;
  if (documents_.size() >= kManyDocuments) {
    const std::vector<bool> chosen = choose_documents(fraction, seed);
    for (std::size_t i = 0; i < documents_.size(); ++i) (chosen[i] ? validation : training).push_back(documents_[i]);
  }
  if (validation.empty()) {
    training.clear();
    CorpusReader reader(*this);
    for (std::size_t i = 0; i < documents_.size(); ++i) {
      const auto [source, begin, end] = documents_[i];
      const std::string_view text = reader.text(i);
      const auto aim = static_cast<std::size_t>(std::llround((1 - fraction) * static_cast<double>(text.size())));
      const std::size_t line_end = text.find('\n', aim);
      const std::uint64_t cut = line_end == std::string_view::npos ? end : begin + line_end + 1;
      training.push_back({source, begin, cut});
      if (cut < end) validation.push_back({source, cut, end});
    }
  }
  check(!training.empty() && !validation.empty(), "corpus: ", documents_.size(), " documents with ", bytes(),
        " bytes are too little text to hold out a fraction of ", fraction, " for validation");
  return {with_documents(std::move(training)), with_documents(std::move(validation))};
}

std::string_view CorpusReader::text(std::size_t index) {
  const Corpus::Document& document = corpus_.documents_.at(index);
  const Corpus::Source& source = corpus_.sources_[document.source];
  if (!source.text.empty()) return source.text.substr(document.begin, document.end - document.begin);
  if (!file_ || source_ != document.source) {
    file_ = MappedFile::open(source.name);
    source_ = document.source;
    check(file_->size() == source.bytes, "corpus: ", source.name, " changed while in use: ", source.bytes,
          " bytes before, ", file_->size(), " now");
  }
  return text_of(*file_).substr(document.begin, document.end - document.begin);
}

}  // namespace switchyard::data
