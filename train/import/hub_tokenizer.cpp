#include "train/import/hub_tokenizer.h"

#include <boost/json/value.hpp>
#include <map>

#include "core/error.h"
#include "core/io/checksum.h"
#include "core/io/mapped_file.h"
#include "data/byte_pair_tokenizer.h"
#include "data/unicode.h"
#include "data/wordpiece_tokenizer.h"
#include "train/import/hub_settings.h"
#include "train/json_text.h"
#include "train/schema.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

/// The vocabulary and the tokens added to it, by id.
std::vector<std::string> pieces_of(const HubSettings& file) {
  std::map<std::int64_t, std::string> by_id;
  const auto add = [&](std::string_view piece, const json::value* id) {
    check(id && id->is_int64() && id->get_int64() >= 0, file.where(), "the id of \"", piece,
          "\" is no number, expected one from 0 on");
    const auto [at, is_new] = by_id.emplace(id->get_int64(), piece);
    check(is_new || at->second == piece, file.where(), "\"", at->second, "\" and \"", piece, "\" have the same id ",
          at->first);
  };
  const json::value *vocabulary = file.find("model.vocab"), *added = file.find("added_tokens");
  check(vocabulary && vocabulary->is_object(), file.where(),
        "model.vocab: expected an object of tokens with their ids");
  for (const auto& [piece, id] : vocabulary->get_object()) add(piece, &id);
  if (added && added->is_array())
    for (const json::value& entry : added->get_array()) {
      const HubSettings token(file.where() + "added_tokens", entry.is_object() ? entry.get_object() : json::object());
      add(token.text("content"), token.find("id"));
    }
  std::vector<std::string> pieces;
  for (auto& [id, piece] : by_id) {
    check(id == std::ssize(pieces), file.where(), "no token has the id ", pieces.size(), ", expected all from 0 on");
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

/// Throws Error unless the key has this value.
void require(const HubSettings& file, std::string_view key, const std::string& expected) {
  const std::string found = file.text(key, "");
  check(found == expected, file.where(), key, ": \"", found, "\" has no counterpart here, expected \"", expected, "\"");
}

/// The tokenizer of these options, which were read from `file`.
template <class Kind, class Options>
std::shared_ptr<const data::Tokenizer> make(const HubSettings& file, Options options) {
  try {
    return std::make_shared<Kind>(std::move(options));
  } catch (const Error& error) {
    fail(file.where(), error.what());
  }
}

std::shared_ptr<const data::Tokenizer> wordpiece(const HubSettings& file, std::uint64_t fingerprint) {
  require(file, "normalizer.type", "BertNormalizer");
  file.expect("normalizer.clean_text", true);
  require(file, "pre_tokenizer.type", "BertPreTokenizer");
  file.expect("model.continuing_subword_prefix", "##");
  data::WordPieceOptions options;
  options.pieces = pieces_of(file);
  options.lower_case = file.boolean("normalizer.lowercase", true);
  options.strip_accents = file.boolean("normalizer.strip_accents", options.lower_case);
  options.space_chinese = file.boolean("normalizer.handle_chinese_chars", true);
  options.longest_word = static_cast<std::size_t>(file.integer("model.max_input_chars_per_word", 100));
  options.unknown = file.text("model.unk_token", options.unknown);
  options.fingerprint = fingerprint;
  return make<data::WordPieceTokenizer>(file, std::move(options));
}

/// GPT-2's files write each byte as a character that can be seen: those that can be seen as themselves, the others, in
/// their order, as the characters from U+0100 on. From such a character back to its byte.
std::map<char32_t, char> visible_bytes() {
  std::map<char32_t, char> bytes;
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 0x100; ++byte) {
    const bool seen = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    bytes.emplace(seen ? byte : next++, static_cast<char>(byte));
  }
  return bytes;
}

/// The bytes that `visible` stands for; itself where it is written otherwise, as added tokens may be.
std::string hidden_bytes(const std::string& visible) {
  static const std::map<char32_t, char> bytes_of_visible = visible_bytes();
  std::string bytes;
  for (const char32_t c : data::code_points(visible)) {
    const auto at = bytes_of_visible.find(c);
    if (at == bytes_of_visible.end()) return visible;
    bytes += at->second;
  }
  return bytes;
}

/// A merge is a list of two pieces, or a text with a blank between them.
std::pair<std::string, std::string> merge_of(const HubSettings& file, const json::value& merge) {
  std::string left, right;
  if (merge.is_array() && merge.get_array().size() == 2 && merge.at(0).is_string() && merge.at(1).is_string()) {
    left = merge.at(0).get_string();
    right = merge.at(1).get_string();
  } else if (merge.is_string()) {
    const std::string both(merge.get_string());
    left = both.substr(0, both.find(' '));
    right = both.substr(std::min(left.size() + 1, both.size()));
  }
  check(!left.empty() && !right.empty(), file.where(), "model.merges: ", abbreviate(merge), ", expected two pieces");
  return {hidden_bytes(left), hidden_bytes(right)};
}

std::shared_ptr<const data::Tokenizer> byte_pairs(const HubSettings& file, std::uint64_t fingerprint) {
  data::require_unicode();
  file.expect("normalizer", nullptr);
  require(file, "pre_tokenizer.type", "ByteLevel");
  file.expect("pre_tokenizer.add_prefix_space", false);
  file.expect("pre_tokenizer.use_regex", true);
  file.expect("model.continuing_subword_prefix", "");
  file.expect("model.end_of_word_suffix", "");
  file.expect("model.byte_fallback", false);
  file.expect("model.ignore_merges", false);
  data::BytePairOptions options;
  for (const std::string& piece : pieces_of(file)) options.pieces.push_back(hidden_bytes(piece));
  const json::value* merges = file.find("model.merges");
  check(merges && merges->is_array(), file.where(), "model.merges: expected a list of pairs");
  for (const json::value& merge : merges->get_array()) options.merges.push_back(merge_of(file, merge));
  options.fingerprint = fingerprint;
  return make<data::BytePairTokenizer>(file, std::move(options));
}

}  // namespace

std::shared_ptr<const data::Tokenizer> load_hub_tokenizer(const std::filesystem::path& path) {
  const auto bytes = MappedFile::open(path);
  const std::string_view text(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  const std::string source = "tokenizer: " + path.string();
  json::value values = parse_json(text, source);
  check(values.is_object(), source, ": holds no JSON object");
  const HubSettings file(source, std::move(values.get_object()));
  const std::string type = file.text("model.type", "");
  check(type == "WordPiece" || type == "BPE", file.where(), "model.type: \"", type,
        "\" has no counterpart here, expected \"WordPiece\" or \"BPE\"");
  return type == "BPE" ? byte_pairs(file, checksum(text)) : wordpiece(file, checksum(text));
}

}  // namespace switchyard::train
