#include "train/import/run.h"

#include <cmath>

#include "core/io/atomic_file.h"
#include "train/checkpoint.h"
#include "train/import/hub_tokenizer.h"
#include "train/import/models.h"
#include "train/json_text.h"
#include "train/run_folder.h"
#include "train/text.h"
#include "train/training_state.h"

namespace switchyard::train {
namespace {

namespace fs = std::filesystem;
using Report = std::function<void(const std::string&)>;

/// Changes `config` by `overrides`. Each value is in its range then; whether they fit together is still to be checked.
template <class RunConfig>
void change(RunConfig& config, const std::vector<std::string>& overrides) {
  boost::json::object values = to_json(config);
  apply_overrides(values, overrides);
  describe(config).read(values);
}

/// Throws Error where `out` is a run, or holds what an import that failed has left: a run takes the text and the
/// tokenizer that it finds.
void check_is_new(const fs::path& out) {
  std::error_code code;
  check(!fs::exists(RunFolder::config_path(out), code), "import: ", out.string(),
        ": is the folder of a run already, expected a new one");
  for (const fs::path& left : {RunFolder::text_path(out), RunFolder::checkpoints_path(out)})
    check(!fs::exists(left, code) || fs::is_empty(left, code), "import: ", left.string(),
          ": holds files already, expected a new folder");
}

void write_run(const fs::path& out, const boost::json::object& config, const nn::Module& model) {
  save_checkpoint(RunFolder::checkpoints_path(out), {0, state_tensors(model), {}, {{"config", config}}}, 1);
  write_file(RunFolder::config_path(out), pretty_json(config));  // last: it makes the folder a run
}

/// The tokenizer that comes with the model; of kind none, after a report of the reason, where there is none that can be
/// used here. `vocabulary`: how many tokens the model embeds.
TokenizerConfig tokenizer_of(const HubFolder& folder, std::int64_t vocabulary, const Report& report) {
  const fs::path pieces = folder.path() / "tokenizer.model", whole = folder.path() / "tokenizer.json";
  TokenizerConfig config;
  config.kind = fs::exists(pieces) ? TokenizerKind::sentencepiece : TokenizerKind::transformers;
  config.model = fs::exists(pieces) ? pieces.string() : whole.string();
  if (config.kind == TokenizerKind::sentencepiece) return config;
  try {
    check(fs::exists(whole), folder.path().string(), " has neither tokenizer.json nor a SentencePiece tokenizer.model");
    const std::int64_t tokens = load_hub_tokenizer(whole)->vocabulary_size();
    check(tokens <= vocabulary, whole.string(), ": has ", tokens, " tokens, of which the model embeds ", vocabulary);
  } catch (const Error& error) {
    report(std::string("without a tokenizer: ") + error.what() + "; programs that need text refuse the run");
    config.kind = TokenizerKind::none;
    config.model.clear();
  }
  return config;
}

void write_language_model(const HubFolder& folder, const std::vector<std::string>& overrides, const fs::path& out,
                          const Report& report) {
  Config config;
  config.model = language_model_config(folder);
  config.data.tokenizer = tokenizer_of(folder, config.model.vocabulary_size, report);
  change(config, overrides);
  validate(config);
  const auto model = import_language_model(folder, config.model);
  model->to(config.dtype());
  if (config.data.tokenizer.kind != TokenizerKind::none) prepare_text(config, RunFolder::text_path(out), report);
  write_run(out, to_json(config), *model);
}

/// Sets how grey values are scaled.
void read_scale(const HubSettings& theirs, ClassifierDataConfig& data) {
  theirs.expect("do_rescale", true);
  const double factor = theirs.number("rescale_factor", 1.0 / 255);
  check(std::abs(factor * 255 - 1) < 1e-6, theirs.where(), "rescale_factor: ", factor,
        " has no counterpart here, expected 1/255");
  const bool normalized = theirs.boolean("do_normalize", true);
  data.mean = normalized ? theirs.single_number("image_mean") : 0;
  data.deviation = normalized ? theirs.single_number("image_std") : 1;
  check(data.deviation > 0, theirs.where(), "image_std: ", data.deviation, ", expected more than 0");
}

std::unique_ptr<nn::Module> import_classifier(const HubFolder& folder, const ClassifierModelConfig& config) {
  if (config.kind == ClassifierKind::text_classifier) return import_text_classifier(folder, config);
  return import_image_classifier(folder, config);
}

void write_classifier(const HubFolder& folder, const std::vector<std::string>& overrides, const fs::path& out,
                      const Report& report) {
  ClassifierConfig config;
  config.model = classifier_model_config(folder);
  config.data.classes = class_names(folder);
  const fs::path preprocessor = folder.path() / "preprocessor_config.json";
  if (config.model.channels == 1 && fs::exists(preprocessor)) read_scale(HubSettings(preprocessor), config.data);
  if (config.model.kind == ClassifierKind::text_classifier)
    config.data.tokenizer = tokenizer_of(folder, config.model.vocabulary_size, report);
  change(config, overrides);
  validate_tokenizer(config.data.tokenizer);
  validate_training(config.training, config.optimizer);
  validate_output(config.output);
  const auto model = import_classifier(folder, config.model);
  model->to(dtype_of(config.training.dtype));
  make_text_folder(RunFolder::text_path(out));
  keep_tokenizer(config.data.tokenizer, RunFolder::text_path(out));
  if (config.model.channels != 1)
    report("for the C++ API alone: the model sees images of " + std::to_string(config.model.channels) +
           " channels, those of IDX files have 1; programs refuse the run");
  if (config.data.files.empty() && config.data.images.empty())
    report("without data: " + RunFolder::config_path(out).string() +
           " is to name the files to train and to validate on in its section \"data\"");
  write_run(out, to_json(config), *model);
}

}  // namespace

void write_imported_run(const HubFolder& folder, const std::vector<std::string>& overrides, const fs::path& out,
                        const Report& report) {
  check_is_new(out);
  if (is_language_model(folder)) write_language_model(folder, overrides, out, report);
  else write_classifier(folder, overrides, out, report);
}

}  // namespace switchyard::train
