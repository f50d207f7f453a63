#include "train/sample.h"

#include <algorithm>
#include <string_view>

#include "train/checkpoint.h"
#include "train/run_folder.h"
#include "train/text.h"
#include "train/training_state.h"

namespace switchyard::train {
namespace {

/// Bytes of the UTF-8 character at the begin of `text`; 0 when there is none.
std::size_t character_length(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const std::size_t length = byte(0) < 0x80                      ? 1
                             : byte(0) >= 0xC2 && byte(0) < 0xE0 ? 2
                             : byte(0) >= 0xE0 && byte(0) < 0xF0 ? 3
                             : byte(0) >= 0xF0 && byte(0) < 0xF5 ? 4
                                                                 : 0;
  if (length == 0 || length > text.size()) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  return length;
}

/// Whether `text` breaks off within a UTF-8 character.
bool ends_within_character(std::string_view text) {
  for (std::size_t bytes = 1; bytes <= std::min<std::size_t>(text.size(), 3); ++bytes) {
    const auto byte = static_cast<unsigned char>(text[text.size() - bytes]);
    if ((byte & 0xC0) == 0x80) continue;
    return (byte >= 0xC2 && bytes < 2) || (byte >= 0xE0 && bytes < 3) || (byte >= 0xF0 && bytes < 4);
  }
  return false;
}

}  // namespace

TrainedModel load_trained_model(const std::filesystem::path& run, const std::string& device,
                                const std::function<void(const std::string&)>& report) {
  TrainedModel trained;
  trained.config = RunFolder::read_config(run);
  if (!device.empty()) trained.config.training.device = device;
  validate(trained.config);
  const auto checkpoint = latest_good(RunFolder::checkpoints_path(run), report);
  check(checkpoint.has_value(), "run folder: ", run.string(), ": holds no checkpoint to load");
  trained.tokenizer = load_tokenizer(trained.config.data.tokenizer, RunFolder::text_path(run));
  trained.model = build_model(trained.config, *trained.tokenizer);
  load_tensors(checkpoint->model, state_tensors(*trained.model));
  trained.model->eval();
  trained.step = checkpoint->step;
  return trained;
}

std::string generate_text(nn::LanguageModel& model, const data::Tokenizer& tokenizer, const std::string& prompt,
                          const nn::SamplingOptions& options, std::uint64_t seed) {
  std::vector<std::int64_t> ids = {tokenizer.separator()};
  for (const std::int32_t id : tokenizer.encode(prompt)) ids.push_back(id);
  Generator generator(seed);
  std::string text;
  std::vector<std::int32_t> document;
  for (const std::int64_t id : nn::generate(model, ids, options, generator)) {
    if (id == tokenizer.separator()) {
      text += tokenizer.decode(document) + "\n<|doc|>\n";
      document.clear();
    } else if (id < tokenizer.vocabulary_size()) {  // a model may have room for more
      document.push_back(static_cast<std::int32_t>(id));
    }
  }
  return text + tokenizer.decode(document);
}

std::vector<std::string> token_texts(const data::Tokenizer& tokenizer, const std::vector<std::int64_t>& ids) {
  std::vector<std::string> texts;
  std::vector<std::int32_t> document;  // its tokens so far: what one adds may depend on those before it
  std::size_t shown = 0;               // bytes of it
  for (const std::int64_t id : ids) {
    if (id == tokenizer.separator()) {
      texts.push_back("\n");
      document.clear();
      shown = 0;
      continue;
    }
    document.push_back(static_cast<std::int32_t>(id));
    const std::string text = tokenizer.decode(document);
    const std::string added = text.substr(std::min(shown, text.size()));
    const bool whole = !ends_within_character(added);
    texts.push_back(whole ? printable(added) : "");
    if (whole) shown = text.size();
  }
  return texts;
}

std::string printable(const std::string& text) {
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character_length(std::string_view(text).substr(i));
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool control = length <= 1 && (byte == 0x7F || (byte < 0x20 && byte != '\n' && byte != '\t'));
    if (length == 0 || control) result += "\uFFFD";
    else result.append(text, i, length);
    i += length == 0 ? 1 : length;
  }
  return result;
}

}  // namespace switchyard::train
