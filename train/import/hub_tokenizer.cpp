#include "train/import/hub_tokenizer.h"

#include <boost/json/value.hpp>
#include <map>

#include "core/error.h"
#include "core/io/checksum.h"
#include "core/io/mapped_file.h"
#include "data/wordpiece_tokenizer.h"
#include "train/import/hub_settings.h"
#include "train/json_text.h"

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
  return std::make_shared<data::WordPieceTokenizer>(std::move(options));
}

}  // namespace

std::shared_ptr<const data::Tokenizer> load_hub_tokenizer(const std::filesystem::path& path) {
  const auto bytes = MappedFile::open(path);
  const std::string_view text(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  const std::string source = "tokenizer: " + path.string();
  json::value values = parse_json(text, source);
  check(values.is_object(), source, ": holds no JSON object");
  const HubSettings file(source, std::move(values.get_object()));
  require(file, "model.type", "WordPiece");
  return wordpiece(file, checksum(text));
}

}  // namespace switchyard::train
