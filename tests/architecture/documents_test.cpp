#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <sstream>
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

TEST(Documents, FiguresOfTheGpuAreRecorded) {
  static const std::regex record(
      R"re(\{"row": "(\w+)", "ms": ([\d.]+), "dense_ms": [\d.]+, "ratio": [\d.]+, "tflops": [\d.]+, "gbps": [\d.]+,)re"
      R"re( "tokens_per_second": \d+, "peak_mib": [\d.]+, "commit": "\w+", "date": "[\d-]+", "gpu": ".+", "driver": ".+"\},?)re");
  std::multimap<std::string, double> recorded;  // ms by row
  std::istringstream results(text_of(kRoot / "bench/results/h200.json"));
  for (std::string line; std::getline(results, line);) {
    std::smatch match;
    if (line == "[" || line == "]") continue;
    ASSERT_TRUE(std::regex_search(line, match, record)) << line;
    recorded.emplace(match[1], std::stod(match[2]));
  }
  static const std::regex row(R"(\n\| (\w+) \| ([\d.]+) \|)");
  const std::string document = text_of(kRoot / "docs/performance.md");
  int rows = 0;
  for (std::sregex_iterator match(document.begin(), document.end(), row), end; match != end; ++match) {
    const auto [first, last] = recorded.equal_range((*match)[1]);
    if (first == last) continue;  // of another table
    const double figure = std::stod((*match)[2]);
    const auto agrees = [&](double expected) { return std::abs(figure - expected) <= 0.006 * expected; };
    // Layers are given in ms, single kernels in us.
    EXPECT_TRUE(std::any_of(first, last, [&](const auto& run) {
      return agrees(run.second) || agrees(1e3 * run.second);
    })) << (*match)[0];
    ++rows;
  }
  EXPECT_GT(rows, 0);
}

}  // namespace
