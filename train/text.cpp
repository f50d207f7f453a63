#include "train/text.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "core/error.h"
#include "core/io/atomic_file.h"
#include "core/io/mapped_file.h"
#include "train/import/hub_tokenizer.h"

namespace switchyard::train {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> paths_of(const std::vector<std::string>& files) { return {files.begin(), files.end()}; }

struct Corpora {
  data::Corpus training, validation;
};

Corpora read_corpora(const Config& config, const std::function<void(const std::string&)>& report) {
  const DataConfig& data = config.data;
  const data::Corpus all =
      data.files.empty() ? data::Corpus::embedded() : data::Corpus::from_paths(paths_of(data.files));
  report("text: " + all.summary());
  if (data.validation_files.empty()) {
    auto [training, validation] = all.split(data.validation_fraction);
    return {std::move(training), std::move(validation)};
  }
  const data::Corpus validation = data::Corpus::from_paths(paths_of(data.validation_files));
  report("validation text: " + validation.summary());
  return {all, validation};
}

void check_has_tokenizer(const TokenizerConfig& config, const fs::path& folder) {
  check(config.kind != TokenizerKind::none, "text: ", folder.string(),
        ": has no tokenizer: data.tokenizer.kind is \"none\", the model was imported without one");
}

/// Where a run keeps the file of its tokenizer, of a kind that has one.
fs::path tokenizer_path(TokenizerKind kind, const fs::path& folder) {
  return folder / (kind == TokenizerKind::transformers ? "tokenizer.json" : "tokenizer.model");
}

/// The tokenizer that the file at `path` describes, of a kind that has one.
std::shared_ptr<const data::Tokenizer> load_tokenizer_file(TokenizerKind kind, const fs::path& path) {
  return kind == TokenizerKind::transformers ? load_hub_tokenizer(path) : data::load_sentencepiece(path);
}

/// Bytes of text that all documents of `tokens` stand for.
double bytes_of(const data::TokenFile& tokens, const data::Tokenizer& tokenizer) {
  double bytes = 0;
  std::vector<std::int32_t> ids;
  for (std::int64_t document = 0; document < tokens.document_count(); ++document) {
    ids.clear();
    const std::int64_t end = tokens.document_begin(document + 1) - 1;  // without the separator
    for (std::int64_t i = tokens.document_begin(document); i < end; ++i) ids.push_back(tokens[i]);
    bytes += static_cast<double>(tokenizer.decode(ids).size());
  }
  return bytes;
}

}  // namespace

void make_text_folder(const fs::path& folder) {
  std::error_code code;
  fs::create_directories(folder, code);
  check(!code, "text: ", folder.string(), ": cannot be made: ", code.message());
  remove_abandoned_temporaries(folder);
}

void keep_tokenizer(const TokenizerConfig& config, const fs::path& folder) {
  const fs::path path = tokenizer_path(config.kind, folder);
  if (config.model.empty() || fs::exists(path)) return;
  load_tokenizer_file(config.kind, config.model);  // so that an error names the user's file, not the copy
  const auto model = MappedFile::open(config.model);
  write_file(path, std::string_view(reinterpret_cast<const char*>(model->data()), model->size()));
}

void make_tokenizer(const TokenizerConfig& config, const data::Corpus& training, const fs::path& folder) {
  keep_tokenizer(config, folder);
  const fs::path path = tokenizer_path(config.kind, folder);
  if (config.kind != TokenizerKind::sentencepiece || fs::exists(path)) return;
  data::SentencePieceOptions options;
  options.vocabulary_size = static_cast<std::int32_t>(config.vocabulary_size);
  data::train_sentencepiece(training, path, options);
}

std::shared_ptr<const data::Tokenizer> load_tokenizer(const TokenizerConfig& config, const fs::path& folder) {
  check_has_tokenizer(config, folder);
  if (config.kind == TokenizerKind::bytes) return data::make_tokenizer("bytes");
  return load_tokenizer_file(config.kind, tokenizer_path(config.kind, folder));
}

TokenizedText prepare_text(const Config& config, const fs::path& folder,
                           const std::function<void(const std::string&)>& report) {
  check_has_tokenizer(config.data.tokenizer, folder);
  make_text_folder(folder);
  const fs::path training_path = folder / "training.tokens", validation_path = folder / "validation.tokens";
  if (!fs::exists(training_path) || !fs::exists(validation_path)) {
    const Corpora corpora = read_corpora(config, report);
    make_tokenizer(config.data.tokenizer, corpora.training, folder);
    const auto tokenizer = load_tokenizer(config.data.tokenizer, folder);
    data::write_token_file(validation_path, corpora.validation, tokenizer);
    data::write_token_file(training_path, corpora.training, tokenizer);
  }
  const auto tokenizer = load_tokenizer(config.data.tokenizer, folder);
  TokenizedText text{tokenizer, data::TokenFile::open(training_path, tokenizer.get()),
                     data::TokenFile::open(validation_path, tokenizer.get())};
  text.tokens_per_byte = static_cast<double>(text.validation.size()) / bytes_of(text.validation, *tokenizer);
  return text;
}

double bits_per_byte(double nats_per_token, double tokens_per_byte) {
  return nats_per_token * tokens_per_byte / std::numbers::ln2;
}

}  // namespace switchyard::train
