#include "train/run_folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <regex>

#include "tests/support/temporary_folder.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;

namespace fs = std::filesystem;

Config config_in(const fs::path& folder) {
  Config config;
  config.output.folder = folder.string();
  config.output.name = "demo";
  config.model.layers = 3;
  return config;
}

TEST(RunFolder, IsNamedByConfigAndDateAndHoldsTheConfig) {
  const TemporaryFolder folder;
  const Config config = config_in(folder / "runs");
  const RunFolder first = RunFolder::create(config);
  const RunFolder second = RunFolder::create(config);  // within the same second, mostly
  EXPECT_NE(first.path(), second.path());
  const std::regex pattern(R"(demo-\d{4}-\d{2}-\d{2}-\d{6}(-2)?)");
  EXPECT_TRUE(std::regex_match(first.path().filename().string(), pattern)) << first.path();
  EXPECT_TRUE(std::regex_match(second.path().filename().string(), pattern)) << second.path();
  EXPECT_EQ(to_json(first.config()), to_json(config));
  EXPECT_EQ(first.config({"model.layers=5"}).model.layers, 5);
}

TEST(RunFolder, TwoProgramsCannotShareOne) {
  const TemporaryFolder folder;
  fs::path path;
  {
    const RunFolder run = RunFolder::create(config_in(folder.path()));
    path = run.path();
    EXPECT_EQ(error_of([&] { RunFolder::open(path); }),
              "run folder: " + path.string() + ": is in use by process " + std::to_string(::getpid()));
    fs::create_directory(run.checkpoints_path());  // as training does
  }
  const RunFolder again = RunFolder::open(path);
  EXPECT_EQ(again.config().model.layers, 3);
}

TEST(RunFolder, AStartThatFailsLeavesNothingBehind) {
  const TemporaryFolder folder;
  fs::path path;
  {
    const RunFolder run = RunFolder::create(config_in(folder.path()));
    path = run.path();
    write_bytes(run.text_path() / "training.tokens", "x");
    EXPECT_TRUE(fs::exists(path));
  }
  EXPECT_FALSE(fs::exists(path));
  {
    const RunFolder run = RunFolder::create(config_in(folder.path()));
    path = run.path();
    fs::create_directory(run.checkpoints_path());
  }
  EXPECT_TRUE(fs::exists(path));
  { const RunFolder opened = RunFolder::open(path); }
  EXPECT_TRUE(fs::exists(path));
}

TEST(RunFolder, IsMadeOnceAtAPath) {
  const TemporaryFolder folder;
  const fs::path path = folder / "a" / "b";
  const std::string start = "run folder: " + path.string() + ": ";
  {
    const RunFolder run = RunFolder::create_at(path);
    EXPECT_EQ(error_of([&] { RunFolder::create_at(path); }),
              start + "is in use by process " + std::to_string(::getpid()));
  }
  { const RunFolder killed_before_it_stored_a_config = RunFolder::create_at(path); }
  RunFolder::create_at(path).store(config_in(folder.path()));
  EXPECT_EQ(error_of([&] { RunFolder::create_at(path); }), start + "holds config.json already, expected a new folder");
  EXPECT_EQ(RunFolder::open(path).config().model.layers, 3);

  write_bytes(folder / "notes" / "a.txt", "x");
  EXPECT_EQ(error_of([&] { RunFolder::create_at(folder / "notes"); }),
            "run folder: " + (folder / "notes").string() +
                ": holds files but no config.json, expected a new folder or that of a run");
  EXPECT_FALSE(fs::exists(folder / "notes" / "lock"));
}

TEST(RunFolder, ErrorsNameTheFolder) {
  const TemporaryFolder folder;
  const std::string missing = (folder / "none").string();
  EXPECT_EQ(error_of([&] { RunFolder::open(missing); }), "run folder: " + missing + ": is no folder");
  EXPECT_EQ(error_of([&] { RunFolder::open(folder.path()); }),
            "run folder: " + folder.path().string() + ": has no config.json, expected the folder of a run");
  write_bytes(folder / "file", "x");
  EXPECT_EQ(error_of([&] { RunFolder::create(config_in(folder / "file")); }),
            "run folder: " + (folder / "file").string() + ": cannot be made: Not a directory");
}

}  // namespace
}  // namespace switchyard::train
