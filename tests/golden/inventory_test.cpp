#include "tests/golden/golden.h"

namespace switchyard::golden {
namespace {

TEST(Inventory, every_file_belongs_to_a_family) {
  std::map<std::string, int> counts;
  for (const auto& path : all_files()) {
    const std::string family = family_of(path);
    EXPECT_NE(family, "") << path << " matches no family";
    ++counts[family];
  }
  EXPECT_FALSE(counts.empty()) << "no golden file in " << folder();
  for (const auto& [family, count] : counts) std::printf("golden: %s %d files\n", family.c_str(), count);
}

}  // namespace
}  // namespace switchyard::golden
