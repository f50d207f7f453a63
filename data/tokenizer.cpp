#include "data/tokenizer.h"

#include "core/error.h"
#include "core/io/checksum.h"

namespace switchyard::data {

std::vector<std::int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
  return ids;
}

std::string ByteTokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  text.reserve(ids.size());
  for (const std::int32_t id : ids) {
    check(id >= 0 && id < 256, "bytes: token id ", id, " is not in 0..255");
    text.push_back(static_cast<char>(id));
  }
  return text;
}

std::uint64_t ByteTokenizer::fingerprint() const { return checksum("bytes, separator 0"); }

std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& name_or_path) {
  if (name_or_path == "bytes") return std::make_shared<ByteTokenizer>();
  check(name_or_path.ends_with(".model"), "tokenizer: unknown tokenizer '", name_or_path,
        "', expected bytes or the path of a SentencePiece model (*.model)");
  return load_sentencepiece(name_or_path);
}

}  // namespace switchyard::data
