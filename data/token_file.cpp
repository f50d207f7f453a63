#include "data/token_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <ios>
#include <limits>
#include <utility>

#include "core/error.h"
#include "core/io/checksum.h"

namespace switchyard::data {
namespace {

constexpr std::array<char, 8> kMagic = {'S', 'W', 'Y', 'T', 'O', 'K', 'E', 'N'};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;  // longer documents are encoded in pieces of about this size

/// The first 192 bytes of a token file.
struct Header {
  std::array<char, 8> magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t token_bytes = 2;
  std::uint64_t token_count = 0;
  std::uint64_t document_count = 0;
  std::uint32_t vocabulary_size = 0;
  std::uint32_t separator = 0;
  std::uint64_t tokenizer_fingerprint = 0;
  std::array<char, 64> tokenizer_name = {};  // filled up with zero bytes
  std::array<char, 64> reserved = {};
  std::uint64_t content_checksum = 0;  // of everything behind the header
  std::uint64_t header_checksum = 0;   // of everything before this field
};
static_assert(sizeof(Header) == 192);

std::uint64_t header_checksum(const Header& header) { return checksum(&header, sizeof header - sizeof(std::uint64_t)); }

std::uint64_t round_up(std::uint64_t bytes) { return (bytes + 7) / 8 * 8; }

/// Checks the header alone; every number in it can be trusted afterwards.
void check_header(const Header& header, std::size_t file_bytes, const std::string& source) {
  check(header.version == kVersion, source, "format version ", header.version, ", this program reads version ",
        kVersion);
  check(header.header_checksum == header_checksum(header), source, "the header is damaged (its checksum is wrong)");
  check(header.token_bytes == 2 || header.token_bytes == 4, source, "token width ", header.token_bytes,
        " bytes, expected 2 or 4");
  check(header.vocabulary_size > 0 && header.vocabulary_size <= 0x7fffffffu, source, "vocabulary size ",
        header.vocabulary_size, " is not in 1..2^31-1");
  check(header.token_bytes == 4 || header.vocabulary_size <= 65536, source, "vocabulary size ", header.vocabulary_size,
        " does not fit tokens of 2 bytes");
  check(header.separator < header.vocabulary_size, source, "separator ", header.separator,
        " is not in the vocabulary of ", header.vocabulary_size);
  check(header.tokenizer_name.back() == '\0', source, "the tokenizer's name is not terminated");
  const std::uint64_t content = file_bytes - sizeof(Header);
  check(header.token_count <= content / header.token_bytes && header.document_count <= content / 8 &&
            round_up(header.token_count * header.token_bytes) + header.document_count * 8 == content,
        source, header.token_count, " tokens of ", header.token_bytes, " bytes and ", header.document_count,
        " documents do not make the ", content, " bytes behind the header (is the file truncated?)");
  check(header.document_count > 0 && header.token_count >= header.document_count, source, header.token_count,
        " tokens cannot hold ", header.document_count, " documents");
}

}  // namespace

TokenFile TokenFile::open(const std::filesystem::path& path, const Tokenizer* tokenizer) {
  TokenFile out;
  out.file_ = MappedFile::open(path);
  const std::string source = "token file: " + path.string() + ": ";
  Header header;
  const std::size_t bytes = out.file_->size();
  const std::size_t known = std::min(bytes, sizeof header);
  if (known > 0) std::memcpy(&header, out.file_->data(), known);
  check(known >= kMagic.size() && header.magic == kMagic, source, "this is not a token file");
  check(known == sizeof header, source, "the file ends inside its header, after ", bytes, " bytes");
  check_header(header, bytes, source);

  out.token_count_ = static_cast<std::int64_t>(header.token_count);
  out.document_count_ = static_cast<std::int64_t>(header.document_count);
  out.vocabulary_size_ = static_cast<std::int32_t>(header.vocabulary_size);
  out.separator_ = static_cast<std::int32_t>(header.separator);
  out.token_bytes_ = header.token_bytes;
  out.documents_at_ = sizeof header + static_cast<std::size_t>(round_up(header.token_count * header.token_bytes));
  out.checksum_ = header.content_checksum;
  out.tokenizer_name_ = header.tokenizer_name.data();
  if (tokenizer) {
    check(header.tokenizer_fingerprint == tokenizer->fingerprint(), source, "made with the tokenizer '",
          out.tokenizer_name_, "' (vocabulary ", out.vocabulary_size_, ", fingerprint ", std::hex,
          header.tokenizer_fingerprint, "), not with '", tokenizer->name(), "' (vocabulary ", std::dec,
          tokenizer->vocabulary_size(), ", fingerprint ", std::hex, tokenizer->fingerprint(), ")");
  }
  out.verify();
  return out;
}

template <class T>
std::span<const T> TokenFile::ids() const {
  return {reinterpret_cast<const T*>(file_->data() + sizeof(Header)), static_cast<std::size_t>(token_count_)};
}

// Good checksums do not mean that a writer kept the rules, and an id out of range would index past an embedding.
void TokenFile::verify() const {
  const std::string source = "token file: " + path().string() + ": ";
  const std::byte* content = file_->data() + sizeof(Header);
  check(switchyard::checksum(content, file_->size() - sizeof(Header)) == checksum_, source,
        "the content is damaged (its checksum is wrong)");
  const auto largest = token_bytes_ == 2 ? std::uint32_t{*std::ranges::max_element(ids<std::uint16_t>())}
                                         : *std::ranges::max_element(ids<std::uint32_t>());
  check(largest < static_cast<std::uint32_t>(vocabulary_size_), source, "token id ", largest,
        " is not in the vocabulary of ", vocabulary_size_);
  check(document_begin(0) == 0, source, "the first document starts at token ", document_begin(0), ", expected 0");
  for (std::int64_t i = 0; i < document_count_; ++i) {
    const std::int64_t begin = document_begin(i), end = document_begin(i + 1);
    check(begin < end && end <= token_count_, source, "document ", i, " spans tokens ", begin, " to ", end, " of ",
          token_count_);
    check((*this)[end - 1] == separator_, source, "document ", i, " does not end with the separator ", separator_);
  }
}

std::int32_t TokenFile::operator[](std::int64_t index) const {
  check(index >= 0 && index < token_count_, "token file: index ", index, " is not in 0..", token_count_ - 1);
  const auto i = static_cast<std::size_t>(index);
  return token_bytes_ == 2 ? std::int32_t{ids<std::uint16_t>()[i]} : static_cast<std::int32_t>(ids<std::uint32_t>()[i]);
}

void TokenFile::read(std::int64_t begin, std::int64_t count, std::int64_t* out) const {
  check(begin >= 0 && begin < token_count_ && count >= 0, "token file: cannot read ", count, " tokens from ", begin,
        " of ", token_count_);
  while (count > 0) {
    const std::int64_t run = std::min(count, token_count_ - begin);
    const auto from = static_cast<std::size_t>(begin), length = static_cast<std::size_t>(run);
    if (token_bytes_ == 2) std::ranges::copy(ids<std::uint16_t>().subspan(from, length), out);
    else std::ranges::copy(ids<std::uint32_t>().subspan(from, length), out);
    out += run;
    count -= run;
    begin = 0;
  }
}

std::int64_t TokenFile::document_begin(std::int64_t document) const {
  check(document >= 0 && document <= document_count_, "token file: document ", document, " is not in 0..",
        document_count_);
  if (document == document_count_) return token_count_;
  std::uint64_t begin = 0;
  std::memcpy(&begin, file_->data() + documents_at_ + 8 * static_cast<std::size_t>(document), sizeof begin);
  return static_cast<std::int64_t>(std::min<std::uint64_t>(begin, std::numeric_limits<std::int64_t>::max()));
}

TokenFileWriter::TokenFileWriter(const std::filesystem::path& path, std::shared_ptr<const Tokenizer> tokenizer)
    : file_(path), tokenizer_(std::move(tokenizer)), token_bytes_(tokenizer_->vocabulary_size() <= 65536 ? 2 : 4) {
  const Header placeholder;
  file_.append(&placeholder, sizeof placeholder);
}

// A long document is cut behind line breaks: pieces of the supported tokenizers do not reach across them.
void TokenFileWriter::add_document(std::string_view text, const std::string& name) {
  document_begins_.push_back(token_count_);
  while (!text.empty()) {
    std::size_t bytes = text.size();
    if (bytes > kPieceBytes) {
      const std::size_t line_end = text.find('\n', kPieceBytes);
      if (line_end != std::string_view::npos) bytes = line_end + 1;
    }
    append_ids(tokenizer_->encode(text.substr(0, bytes)), name);
    text.remove_prefix(bytes);
  }
  packed_.clear();
  const std::int32_t separator = tokenizer_->separator();
  packed_.resize(token_bytes_);
  std::memcpy(packed_.data(), &separator, token_bytes_);
  file_.append(packed_.data(), packed_.size());
  checksum_.update(packed_.data(), packed_.size());
  ++token_count_;
}

void TokenFileWriter::append_ids(const std::vector<std::int32_t>& ids, const std::string& name) {
  packed_.resize(ids.size() * token_bytes_);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    check(ids[i] != tokenizer_->separator(), "token file: ", name, ": token ", i, " of the text is the separator ",
          ids[i], " of the tokenizer '", tokenizer_->name(), "', which may not occur inside a document");
    check(ids[i] >= 0 && ids[i] < tokenizer_->vocabulary_size(), "token file: ", name, ": token id ", ids[i],
          " is not in the vocabulary of ", tokenizer_->vocabulary_size());
    std::memcpy(packed_.data() + i * token_bytes_, &ids[i], token_bytes_);
  }
  file_.append(packed_.data(), packed_.size());
  checksum_.update(packed_.data(), packed_.size());
  token_count_ += ids.size();
}

void TokenFileWriter::commit() {
  check(!document_begins_.empty(), "token file: no document was added");
  const std::array<std::byte, 8> zeros = {};
  const std::uint64_t token_bytes = token_count_ * token_bytes_;
  const auto append = [&](const void* data, std::size_t bytes) {
    file_.append(data, bytes);
    checksum_.update(data, bytes);
  };
  append(zeros.data(), static_cast<std::size_t>(round_up(token_bytes) - token_bytes));
  append(document_begins_.data(), document_begins_.size() * 8);

  Header header;
  header.token_bytes = static_cast<std::uint32_t>(token_bytes_);
  header.token_count = token_count_;
  header.document_count = document_begins_.size();
  header.vocabulary_size = static_cast<std::uint32_t>(tokenizer_->vocabulary_size());
  header.separator = static_cast<std::uint32_t>(tokenizer_->separator());
  header.tokenizer_fingerprint = tokenizer_->fingerprint();
  const std::string name = tokenizer_->name();
  std::copy_n(name.begin(), std::min(name.size(), header.tokenizer_name.size() - 1), header.tokenizer_name.begin());
  header.content_checksum = checksum_.value();
  header.header_checksum = header_checksum(header);
  file_.overwrite(0, &header, sizeof header);
  file_.commit();
}

void write_token_file(const std::filesystem::path& path, const Corpus& corpus,
                      std::shared_ptr<const Tokenizer> tokenizer) {
  TokenFileWriter writer(path, std::move(tokenizer));
  CorpusReader reader(corpus);
  for (std::size_t i = 0; i < corpus.documents().size(); ++i)
    writer.add_document(reader.text(i), corpus.source_name(i));
  writer.commit();
}

}  // namespace switchyard::data
