#include "train/import/run.h"

#include "core/io/atomic_file.h"
#include "train/checkpoint.h"
#include "train/import/models.h"
#include "train/json_text.h"
#include "train/run_folder.h"
#include "train/text.h"
#include "train/training_state.h"

namespace switchyard::train {
namespace {

namespace fs = std::filesystem;

Config run_config(const HubFolder& folder, const moe::LanguageModelConfig& model,
                  const std::vector<std::string>& files) {
  Config config;
  config.model = model;
  config.data.files = files;
  const fs::path tokenizer = folder.path() / "tokenizer.model";
  if (fs::exists(tokenizer)) {
    config.data.tokenizer.kind = TokenizerKind::sentencepiece;
    config.data.tokenizer.model = tokenizer.string();
  } else {
    config.data.tokenizer.kind = TokenizerKind::none;
  }
  validate(config);
  return config;
}

}  // namespace

bool write_imported_run(const HubFolder& folder, const std::vector<std::string>& files, const fs::path& out,
                        const std::function<void(const std::string&)>& report) {
  std::error_code code;
  check(!fs::exists(RunFolder::config_path(out), code), "import: ", out.string(),
        ": is the folder of a run already, expected a new one");
  const ImportedLanguageModel imported = import_language_model(folder);
  const Config config = run_config(folder, imported.config, files);
  fs::create_directories(out, code);
  check(!code, "import: ", out.string(), ": cannot be made: ", code.message());
  const bool has_tokenizer = config.data.tokenizer.kind != TokenizerKind::none;
  if (has_tokenizer) prepare_text(config, RunFolder::text_path(out), report);
  save_checkpoint(RunFolder::checkpoints_path(out),
                  {0, state_tensors(*imported.model), {}, {{"config", to_json(config)}}}, 1);
  write_file(RunFolder::config_path(out), pretty_json(to_json(config)));  // last: it makes the folder a run
  return has_tokenizer;
}

}  // namespace switchyard::train
