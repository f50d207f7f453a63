#include "train/metrics.h"

#include <gtest/gtest.h>

#include <boost/json/value.hpp>
#include <limits>

#include "tests/support/temporary_folder.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;

namespace json = boost::json;

std::vector<std::int64_t> steps_of(const std::filesystem::path& path) {
  std::vector<std::int64_t> steps;
  for (const json::object& line : read_metrics(path)) steps.push_back(line.at("step").get_int64());
  return steps;
}

TEST(Metrics, OneObjectPerLineFlushedAtOnce) {
  const TemporaryFolder folder;
  MetricsLog log(folder / "m.jsonl");
  log.write(10, {{"loss", 2.5}, {"name", "a\nb"}});
  log.write(20, {{"loss", 0.1}, {"usage", {0.25, 0.75}}});
  EXPECT_EQ(read_bytes(folder / "m.jsonl"),
            "{\"step\":10,\"loss\":2.5E0,\"name\":\"a\\nb\"}\n{\"step\":20,\"loss\":1E-1,\"usage\":[2.5E-1,7.5E-1]}\n");
  EXPECT_EQ(read_metrics(folder / "m.jsonl")[1].at("loss").get_double(), 0.1);
}

TEST(Metrics, NumbersThatJsonCannotHoldBecomeNull) {
  const TemporaryFolder folder;
  MetricsLog log(folder / "m.jsonl");
  const double infinite = std::numeric_limits<double>::infinity();
  log.write(1, {{"loss", std::numeric_limits<double>::quiet_NaN()}, {"deep", {{"list", {1.5, infinite}}}}});
  const json::object line = read_metrics(folder / "m.jsonl")[0];
  EXPECT_TRUE(line.at("loss").is_null());
  EXPECT_EQ(line.at("deep").at("list"), json::value({1.5, nullptr}));
}

TEST(Metrics, ResumingDropsLaterAndHalfLines) {
  const TemporaryFolder folder;
  {
    MetricsLog log(folder / "m.jsonl");
    for (const std::int64_t step : {10, 20, 20, 30, 40}) log.write(step, {{"loss", 1.0}});
  }
  write_bytes(folder / "m.jsonl", read_bytes(folder / "m.jsonl") + "{\"step\":5,\"lo");
  {
    MetricsLog log(folder / "m.jsonl", 25);
    EXPECT_EQ(steps_of(folder / "m.jsonl"), (std::vector<std::int64_t>{10, 20, 20}));
    log.write(30, {});
  }
  MetricsLog log(folder / "m.jsonl", 30);
  EXPECT_EQ(steps_of(folder / "m.jsonl"), (std::vector<std::int64_t>{10, 20, 20, 30}));
}

TEST(Metrics, AWholeLineWithoutItsBreakIsDropped) {
  const TemporaryFolder folder;
  write_bytes(folder / "m.jsonl", "{\"step\":1}\n{\"step\":2}");
  MetricsLog log(folder / "m.jsonl", 9);
  log.write(3, {});
  EXPECT_EQ(read_bytes(folder / "m.jsonl"), "{\"step\":1}\n{\"step\":3}\n");
}

TEST(Metrics, ErrorsNameTheFile) {
  const TemporaryFolder folder;
  const std::string missing = (folder / "no" / "m.jsonl").string();
  EXPECT_EQ(error_of([&] { MetricsLog log(missing); }),
            "metrics: " + missing + ": cannot be opened: No such file or directory");
  EXPECT_EQ(error_of([&] { MetricsLog log(folder.path()); }),
            "metrics: " + folder.path().string() + ": is a folder, expected a file");
  EXPECT_EQ(error_of([&] { read_metrics(missing); }),
            "metrics: " + missing + ": cannot be opened: No such file or directory");
  write_bytes(folder / "bad", "{\"step\":1}\n[2]\n");
  EXPECT_EQ(error_of([&] { read_metrics(folder / "bad"); }),
            "metrics: " + (folder / "bad").string() + ", entry 2: is no JSON object");
}

TEST(Metrics, AFullDiskIsNamed) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "needs /dev/full";
  EXPECT_EQ(error_of([&] {
              MetricsLog log("/dev/full");
              log.write(1, {});
            }),
            "metrics: /dev/full: cannot be written: No space left on device");
}

}  // namespace
}  // namespace switchyard::train
