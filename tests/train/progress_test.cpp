#include "train/progress.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>

#include "tests/support/temporary_folder.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;

ProgressReport report_of(std::int64_t step) {
  return {step, 1500, 1.83123, 2.64191, 97123.0, 11525.0, 0.973, std::size_t{6} << 30};
}

TEST(Progress, OneLineSaysItAll) {
  EXPECT_EQ(
      format_progress(report_of(250)),
      "step  250/1500  loss 1.8312  2.642 bits/byte  97.1k tok/s  ETA 3h12m  expert entropy 0.97  memory 6.0 GiB");
  ProgressReport dense = report_of(1500);
  dense.expert_entropy.reset();
  dense.loss = std::nan("");
  EXPECT_EQ(format_progress(dense),
            "step 1500/1500  loss nan  2.642 bits/byte  97.1k tok/s  ETA 3h12m  memory 6.0 GiB");
}

TEST(Progress, Durations) {
  const double infinite = std::numeric_limits<double>::infinity();
  for (const auto& [seconds, text] : std::vector<std::pair<double, std::string>>{{0, "0s"},
                                                                                 {59.4, "59s"},
                                                                                 {59.6, "1m00s"},
                                                                                 {187, "3m07s"},
                                                                                 {7500, "2h05m"},
                                                                                 {4 * 86400 + 11 * 3600, "4d11h"},
                                                                                 {-1, "?"},
                                                                                 {infinite, "?"},
                                                                                 {std::nan(""), "?"},
                                                                                 {1e300, "?"}})
    EXPECT_EQ(format_duration(seconds), text);
}

TEST(Progress, SizesAndRates) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes((std::size_t{1} << 20) - 1), "1.0 MiB");
  EXPECT_EQ(format_bytes(std::size_t{3} << 40), "3.0 TiB");
  EXPECT_EQ(format_rate(0), "0.00");
  EXPECT_EQ(format_rate(999.4), "999");
  EXPECT_EQ(format_rate(999.6), "1.00k");
  EXPECT_EQ(format_rate(450000), "450k");
  EXPECT_EQ(format_rate(1.2e6), "1.20M");
  EXPECT_EQ(format_rate(std::nan("")), "?");
}

/// What a Progress prints into a file when told that it is, or is not, a terminal.
std::string printed(bool terminal) {
  const TemporaryFolder folder;
  const std::string path = (folder / "out").string();
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "w"), &std::fclose);
  {
    Progress progress(file.get(), terminal);
    progress.update(report_of(1));
    progress.update(report_of(2));
    progress.message("saved");
    progress.update(report_of(3));
  }
  return read_bytes(path);
}

TEST(Progress, RewritesOneLineOnATerminalOnly) {
  const std::string one = format_progress(report_of(1)), two = format_progress(report_of(2)),
                    three = format_progress(report_of(3));
  EXPECT_EQ(printed(false), one + "\n" + two + "\nsaved\n" + three + "\n");
  EXPECT_EQ(printed(true), "\r\033[K" + one + "\r\033[K" + two + "\r\033[Ksaved\n\r\033[K" + three + "\n");
}

}  // namespace
}  // namespace switchyard::train
