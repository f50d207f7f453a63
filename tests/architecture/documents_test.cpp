#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>

/// The documents, held against the tree that they speak of.

namespace {

namespace fs = std::filesystem;

const fs::path kRoot = SWITCHYARD_SOURCE_DIR;

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Documents, TheReadmeShowsTheFirstProgramAsItIs) {
  const std::string program = text_of(kRoot / "examples/first_program.cpp");
  ASSERT_FALSE(program.empty());
  EXPECT_NE(text_of(kRoot / "README.md").find("```cpp\n" + program + "```"), std::string::npos);
}

TEST(Documents, EveryLinkToAFileLeadsToOne) {
  static const std::regex link(R"(\]\(([^)#:\s]+)(#[^)]*)?\))");
  int links = 0;
  for (const auto& entry : fs::recursive_directory_iterator(kRoot)) {
    const std::string place = fs::relative(entry.path(), kRoot).generic_string();
    if (entry.path().extension() != ".md" || place.starts_with("build/") || place.starts_with(".")) continue;
    const std::string text = text_of(entry.path());
    for (std::sregex_iterator match(text.begin(), text.end(), link), end; match != end; ++match, ++links)
      EXPECT_TRUE(fs::exists(entry.path().parent_path() / (*match)[1].str())) << place << ": " << (*match)[1];
  }
  EXPECT_GT(links, 0);
}

}  // namespace
