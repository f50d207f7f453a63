#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

/// The floors of the house, checked on the text of the sources: a floor includes only itself and the floors below it.

namespace {

namespace fs = std::filesystem;

// Bottom first. `cuda` is the one exception to the order: it includes core, and nobody includes it.
constexpr std::array<std::string_view, 8> kFloors = {"core",        "cuda", "autograd", "nn",
                                                     "distributed", "moe",  "data",     "train"};
// Programs: they include any floor, and no floor includes them.
constexpr std::array<std::string_view, 4> kPrograms = {"examples", "tests", "bench", "tools"};

std::optional<std::size_t> floor_index(std::string_view folder) {
  const auto* found = std::find(kFloors.begin(), kFloors.end(), folder);
  if (found == kFloors.end()) return std::nullopt;
  return static_cast<std::size_t>(found - kFloors.begin());
}

bool is_program(std::string_view folder) {
  return std::find(kPrograms.begin(), kPrograms.end(), folder) != kPrograms.end();
}

bool is_source(const fs::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".h" || extension == ".cpp" || extension == ".cu" || extension == ".cuh";
}

std::vector<fs::path> sources_under(const fs::path& root, std::string_view folder) {
  std::vector<fs::path> files;
  const fs::path top = root / folder;
  if (!fs::is_directory(top)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(top)) {
    if (entry.is_regular_file() && is_source(entry.path())) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

bool may_include(std::string_view from, std::string_view to) {
  if (from == to) return true;
  if (is_program(to) || to == "cuda") return false;
  if (from == "cuda") return to == "core";
  return *floor_index(to) < *floor_index(from);
}

/// Calls `visit(line_number, line)` for every line of a file.
template <typename Visit>
void for_each_line(const fs::path& path, Visit visit) {
  std::ifstream in(path);
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) visit(number, line);
}

std::string place(const fs::path& root, const fs::path& file, int line) {
  return fs::relative(file, root).generic_string() + ":" + std::to_string(line);
}

/// Every include under `root` that goes against the order of the floors, or is not rooted at the repository, as
/// "file:line: message".
std::vector<std::string> include_violations(const fs::path& root) {
  static const std::regex include(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"])");
  std::vector<std::string> violations;
  for (const std::string_view floor : kFloors) {
    for (const fs::path& file : sources_under(root, floor)) {
      for_each_line(file, [&](int number, const std::string& line) {
        std::smatch match;
        if (!std::regex_search(line, match, include)) return;
        const std::string target = match[2];
        const std::string folder = target.substr(0, target.find('/'));
        const bool ours = target.find('/') != std::string::npos && (floor_index(folder) || is_program(folder));
        const std::string where = place(root, file, number);
        if (ours && !may_include(floor, folder)) {
          violations.push_back(where + ": " + std::string(floor) + " includes " + target + ", of the floor " + folder +
                               " that it must not know");
        } else if (!ours && match[1] == "\"") {
          violations.push_back(where + ": \"" + target + "\" is not rooted at the repository");
        }
      });
    }
  }
  return violations;
}

/// Every preprocessor condition on CUDA outside cuda/.
std::vector<std::string> cuda_conditions(const fs::path& root) {
  static const std::regex condition(R"(^\s*#\s*(if|ifdef|ifndef|elif)\b.*(CUDA|NVCC|__NV))", std::regex::icase);
  std::vector<std::string> violations;
  std::vector<std::string_view> folders(kFloors.begin(), kFloors.end());
  folders.insert(folders.end(), {"examples", "bench"});
  for (const std::string_view folder : folders) {
    if (folder == "cuda") continue;
    for (const fs::path& file : sources_under(root, folder)) {
      for_each_line(file, [&](int number, const std::string& line) {
        if (std::regex_search(line, condition)) {
          violations.push_back(place(root, file, number) + ": a condition on CUDA outside cuda/: " + line);
        }
      });
    }
  }
  return violations;
}

/// Every .cpp whose own header is not its first include. Where it is, the header is known to compile on its own.
std::vector<std::string> late_own_headers(const fs::path& root) {
  static const std::regex include(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])");
  std::vector<std::string> violations;
  for (const std::string_view floor : kFloors) {
    for (const fs::path& file : sources_under(root, floor)) {
      fs::path header = file;
      header.replace_extension(".h");
      if (file.extension() != ".cpp" || !fs::exists(header)) continue;
      bool first = true;
      for_each_line(file, [&](int number, const std::string& line) {
        std::smatch match;
        if (!first || !std::regex_search(line, match, include)) return;
        first = false;
        if (match[1] != fs::relative(header, root).generic_string()) {
          violations.push_back(place(root, file, number) + ": the first include is not the file's own header");
        }
      });
    }
  }
  return violations;
}

std::string join(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += "\n  " + line;
  return text;
}

/// A made-up source tree in a temporary folder, deleted at the end of the test.
class MadeUpTree : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "switchyard-include-order-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }

  fs::path root_;
};

TEST(IncludeOrder, TheTreeIsWhereTheTestLooks) { EXPECT_GT(sources_under(SWITCHYARD_SOURCE_DIR, "core").size(), 10u); }

TEST(IncludeOrder, NoFloorIncludesAFloorAboveIt) {
  const auto violations = include_violations(SWITCHYARD_SOURCE_DIR);
  EXPECT_TRUE(violations.empty()) << join(violations);
}

TEST(IncludeOrder, NoConditionOnCudaOutsideItsFolder) {
  const auto violations = cuda_conditions(SWITCHYARD_SOURCE_DIR);
  EXPECT_TRUE(violations.empty()) << join(violations);
}

TEST(IncludeOrder, EverySourceIncludesItsOwnHeaderFirst) {
  const auto violations = late_own_headers(SWITCHYARD_SOURCE_DIR);
  EXPECT_TRUE(violations.empty()) << join(violations);
}

TEST_F(MadeUpTree, AGoodTreePasses) {
  write("core/tensor.h", "#pragma once\n#include <vector>\n");
  write("core/tensor.cpp", "#include \"core/tensor.h\"\n");
  write("cuda/matmul.cu", "#ifdef __CUDA_ARCH__\n#endif\n#include \"core/tensor.h\"\n#include \"cuda/launch.cuh\"\n");
  write("autograd/engine.cpp", "#include \"core/tensor.h\"\n");
  write("train/trainer.cpp", "#include \"data/loader.h\"\n#include \"moe/switch_all.h\"\n#include <boost/json.hpp>\n");
  write("examples/train_lm.cpp", "#include \"train/trainer.h\"\n");
  EXPECT_EQ(include_violations(root_), std::vector<std::string>{});
  EXPECT_EQ(cuda_conditions(root_), std::vector<std::string>{});
  EXPECT_EQ(late_own_headers(root_), std::vector<std::string>{});
}

TEST_F(MadeUpTree, AnIncludeOfAFloorAboveIsFoundWithItsPlace) {
  write("core/tensor.cpp", "#include <vector>\n\n#include \"autograd/variable.h\"\n");
  EXPECT_EQ(include_violations(root_),
            std::vector<std::string>{
                "core/tensor.cpp:3: core includes autograd/variable.h, of the floor autograd that it must not know"});
}

TEST_F(MadeUpTree, EveryUpwardPairIsFound) {
  std::size_t written = 0;
  for (std::size_t from = 0; from < kFloors.size(); ++from) {
    for (std::size_t to = from + 1; to < kFloors.size(); ++to) {
      const std::string name = std::string(kFloors[from]) + "/to_" + std::string(kFloors[to]) + ".h";
      write(name, "  #  include <" + std::string(kFloors[to]) + "/x.h>\n");
      ++written;
    }
  }
  EXPECT_EQ(include_violations(root_).size(), written);
}

TEST_F(MadeUpTree, NobodyIncludesCudaAndNoFloorIncludesAProgram) {
  write("core/a.h", "#include \"cuda/stream.h\"\n");
  write("moe/a.cpp", "#include \"cuda/stream.h\"\n");
  write("nn/a.h", "#include \"tests/support/close.h\"\n");
  write("train/a.cpp", "#include \"examples/train_lm.h\"\n");
  EXPECT_EQ(include_violations(root_).size(), 4u);
}

TEST_F(MadeUpTree, AnIncludeNotRootedAtTheRepositoryIsFound) {
  write("nn/linear.cpp", "#include \"linear.h\"\n#include \"../core/tensor.h\"\n");
  EXPECT_EQ(include_violations(root_),
            (std::vector<std::string>{"nn/linear.cpp:1: \"linear.h\" is not rooted at the repository",
                                      "nn/linear.cpp:2: \"../core/tensor.h\" is not rooted at the repository"}));
}

TEST_F(MadeUpTree, AConditionOnCudaIsFound) {
  write("nn/linear.cpp", "#include <vector>\n#ifdef SWITCHYARD_CUDA\n#endif\n#if defined(__NVCC__)\n#endif\n");
  EXPECT_EQ(cuda_conditions(root_).size(), 2u);
}

TEST_F(MadeUpTree, AnOwnHeaderThatIsNotFirstIsFound) {
  write("nn/linear.h", "#pragma once\n");
  write("nn/linear.cpp", "#include <vector>\n#include \"nn/linear.h\"\n");
  EXPECT_EQ(late_own_headers(root_),
            std::vector<std::string>{"nn/linear.cpp:1: the first include is not the file's own header"});
}

}  // namespace
