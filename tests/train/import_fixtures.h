#pragma once

#include <filesystem>
#include <stdexcept>
#include <string>

#include "moe/language_model.h"
#include "tests/support/device.h"
#include "tests/support/temporary_folder.h"
#include "train/import/models.h"

/// Models of the transformers library in tests/train/fixtures, which tools/make_import_fixtures.py made.
namespace switchyard::train {

namespace fs = std::filesystem;

/// Its folder.
inline fs::path fixture(const std::string& family) {
  return fs::path(SWITCHYARD_SOURCE_DIR) / "tests/train/fixtures" / family;
}

/// An input of a fixture, or the logits that the library computed from them.
inline Tensor expected(const std::string& family, const std::string& name) {
  return SafetensorsFile::open(fixture(family) / "expected.safetensors").load(name).to(default_device());
}

/// In evaluation mode.
inline std::unique_ptr<nn::LanguageModel> language_model(const fs::path& path) {
  const HubFolder folder(path);
  auto model = import_language_model(folder, language_model_config(folder));
  model->eval();
  return model;
}

/// The largest difference from the library's logits, relative as EXPECT_CLOSE has it.
inline constexpr double kTolerance = 1e-5;

using Tensors = std::vector<std::pair<std::string, Tensor>>;

/// A copy of the GPT-2 fixture to be changed.
class ChangedImport : public ::testing::Test {
 protected:
  ChangedImport() {
    fs::copy_file(fixture("gpt2") / "config.json", folder_ / "config.json");
    const SafetensorsFile file = SafetensorsFile::open(fixture("gpt2") / "model.safetensors");
    for (const std::string& name : file.names()) tensors_.emplace_back(name, file.load(name));
  }

  std::unique_ptr<nn::LanguageModel> import() {
    save_safetensors(folder_ / "model.safetensors", tensors_);
    return language_model(folder_.path());
  }

  Tensor& tensor(const std::string& name) {
    for (auto& [known, tensor] : tensors_)
      if (known == name) return tensor;
    throw std::out_of_range(name);
  }

  void replace_in_config(const std::string& text, const std::string& replacement) {
    std::string config = testing::read_bytes(folder_ / "config.json");
    const auto at = config.find(text);
    ASSERT_NE(at, std::string::npos) << text;
    testing::write_bytes(folder_ / "config.json", config.replace(at, text.size(), replacement));
  }

  testing::TemporaryFolder folder_;
  Tensors tensors_;
};

}  // namespace switchyard::train
