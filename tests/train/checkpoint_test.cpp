#include "train/checkpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json/value.hpp>
#include <cstring>

#include "core/io/checksum.h"
#include "tests/support/temporary_folder.h"

namespace switchyard::train {
namespace {

using namespace switchyard::testing;

namespace fs = std::filesystem;
namespace json = boost::json;

/// A checkpoint whose every number tells its step.
Checkpoint checkpoint_of(std::int64_t step, std::int64_t size = 300) {
  const auto value = static_cast<double>(step);
  return {step,
          {{"embed.weight", Tensor::full({size, 3}, value)}, {"head.bias", Tensor::full({7}, -value, DType::bf16)}},
          {{"embed.weight.mean", Tensor::full({size, 3}, value + 0.5)}, {"steps", Tensor::scalar(value, DType::i64)}},
          {{"random", {{"seed", 1}, {"position", step * 1000}}}, {"rate", 0.1 / (value + 1)}}};
}

void expect_checkpoint(const OpenCheckpoint& found, std::int64_t step) {
  EXPECT_EQ(found.step, step);
  const Checkpoint expected = checkpoint_of(step);
  EXPECT_EQ(found.state, expected.state);
  for (const auto& [name, tensor] : expected.model)
    EXPECT_EQ(found.model.load(name).to_vector<double>(), tensor.to_vector<double>());
  for (const auto& [name, tensor] : expected.optimizer)
    EXPECT_EQ(found.optimizer.load(name).to_vector<double>(), tensor.to_vector<double>());
}

std::vector<std::int64_t> steps_in(const fs::path& folder) {
  std::vector<std::int64_t> steps;
  for (const auto& [step, path] : list_checkpoints(folder)) steps.push_back(step);
  return steps;
}

std::size_t entries_in(const fs::path& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

void flip_byte(const fs::path& path, std::size_t at) {
  std::string text = read_bytes(path);
  text.at(at) = static_cast<char>(text.at(at) ^ 0x10);
  write_bytes(path, text);
}

TEST(Checkpoint, ReadsBackWhatWasSaved) {
  const TemporaryFolder folder;
  EXPECT_EQ(save_checkpoint(folder / "new", checkpoint_of(1200), 2), folder / "new" / "step-00001200");
  expect_checkpoint(open_checkpoint(folder / "new" / "step-00001200"), 1200);
  const auto silent = [](const std::string& line) { ADD_FAILURE() << line; };
  expect_checkpoint(latest_good(folder / "new", silent).value(), 1200);
  EXPECT_FALSE(latest_good(folder / "nothing", silent).has_value());
}

TEST(Checkpoint, TensorsGoBackToTheirPlaces) {
  const TemporaryFolder folder;
  const OpenCheckpoint saved = open_checkpoint(save_checkpoint(folder.path(), checkpoint_of(5), 1));
  const NamedTensors targets = checkpoint_of(0).model;
  load_tensors(saved.model, targets);
  for (std::size_t i = 0; i < targets.size(); ++i)
    EXPECT_EQ(targets[i].second.to_vector<double>(), checkpoint_of(5).model[i].second.to_vector<double>());
}

TEST(Checkpoint, KeepsTheNewestAndDropsWhatALaterResumeLeftBehind) {
  const TemporaryFolder folder;
  for (const std::int64_t step : {10, 20, 30, 40}) save_checkpoint(folder.path(), checkpoint_of(step), 3);
  EXPECT_EQ(steps_in(folder.path()), (std::vector<std::int64_t>{20, 30, 40}));
  save_checkpoint(folder.path(), checkpoint_of(25), 3);
  EXPECT_EQ(steps_in(folder.path()), (std::vector<std::int64_t>{20, 25}));
  save_checkpoint(folder.path(), checkpoint_of(25), 1);  // once more, over itself
  EXPECT_EQ(steps_in(folder.path()), (std::vector<std::int64_t>{25}));
  EXPECT_EQ(entries_in(folder.path()), 1u);
  expect_checkpoint(open_checkpoint(folder / "step-00000025"), 25);
}

TEST(Checkpoint, LeftoversOfAKilledWriterAreIgnoredAndCleared) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(10), 2);
  fs::create_directory(folder / "step-00000020.partial");
  write_bytes(folder / "step-00000020.partial" / "model.safetensors", "half");
  fs::create_directory(folder / "step-00000005.removed");
  fs::create_directory(folder / "step-7");  // no name of ours
  EXPECT_EQ(steps_in(folder.path()), std::vector<std::int64_t>{10});
  save_checkpoint(folder.path(), checkpoint_of(20), 2);
  EXPECT_EQ(entries_in(folder.path()), 3u);
  expect_checkpoint(open_checkpoint(folder / "step-00000020"), 20);
}

// Every kind of damage to the newest: named in one line, and the one before is used.
TEST(Checkpoint, DamageIsNamedAndTheOlderOneUsed) {
  struct Damage {
    const char* what;
    void (*apply)(const fs::path&);
    const char* message;  // after the checkpoint's path
  };
  const std::vector<Damage> table = {
      {"no state", [](const fs::path& p) { fs::remove(p / "state.json"); }, "/state.json: No such file or directory"},
      {"empty state", [](const fs::path& p) { write_bytes(p / "state.json", ""); },
       "/state.json: is no checkpoint state, expected it to open with its checksum"},
      {"foreign state", [](const fs::path& p) { write_bytes(p / "state.json", std::string(100, '{')); },
       "/state.json: is no checkpoint state, expected it to open with its checksum"},
      {"truncated state",
       [](const fs::path& p) { fs::resize_file(p / "state.json", fs::file_size(p / "state.json") - 9); },
       "/state.json: is damaged: its checksum is"},
      {"flipped state", [](const fs::path& p) { flip_byte(p / "state.json", 150); },
       "/state.json: is damaged: its checksum is"},
      {"flipped state checksum", [](const fs::path& p) { flip_byte(p / "state.json", 20); },
       "/state.json: is damaged: its checksum is"},
      {"no model", [](const fs::path& p) { fs::remove(p / "model.safetensors"); },
       "/model.safetensors: No such file or directory"},
      {"truncated model", [](const fs::path& p) { fs::resize_file(p / "model.safetensors", 1000); },
       "/model.safetensors: is damaged: it has 1000 bytes, expected"},
      {"empty model", [](const fs::path& p) { fs::resize_file(p / "model.safetensors", 0); },
       "/model.safetensors: is damaged: it has 0 bytes, expected"},
      {"longer model",
       [](const fs::path& p) { fs::resize_file(p / "model.safetensors", fs::file_size(p / "model.safetensors") + 1); },
       "/model.safetensors: is damaged: it has"},
      {"flipped model", [](const fs::path& p) { flip_byte(p / "model.safetensors", 2000); },
       "/model.safetensors: is damaged: its checksum is"},
      {"flipped model header", [](const fs::path& p) { flip_byte(p / "model.safetensors", 3); },
       "/model.safetensors: is damaged: its checksum is"},
      {"no optimizer", [](const fs::path& p) { fs::remove(p / "optimizer.safetensors"); },
       "/optimizer.safetensors: No such file or directory"},
      {"flipped optimizer", [](const fs::path& p) { flip_byte(p / "optimizer.safetensors", 2500); },
       "/optimizer.safetensors: is damaged: its checksum is"},
      {"optimizer is a folder",
       [](const fs::path& p) {
         fs::remove(p / "optimizer.safetensors");
         fs::create_directory(p / "optimizer.safetensors");
       },
       "/optimizer.safetensors: "},
      {"a file of that name",
       [](const fs::path& p) {
         fs::remove_all(p);
         write_bytes(p, "x");
       },
       ": is no checkpoint folder"},
      {"an empty folder",
       [](const fs::path& p) {
         fs::remove_all(p);
         fs::create_directory(p);
       },
       "/state.json: No such file or directory"},
  };
  for (const Damage& damage : table) {
    SCOPED_TRACE(damage.what);
    const TemporaryFolder folder;
    save_checkpoint(folder.path(), checkpoint_of(10), 2);
    const fs::path newest = save_checkpoint(folder.path(), checkpoint_of(20), 2);
    damage.apply(newest);
    std::vector<std::string> lines;
    const auto good = latest_good(folder.path(), [&](const std::string& line) { lines.push_back(line); });
    ASSERT_TRUE(good.has_value());
    expect_checkpoint(*good, 10);
    ASSERT_EQ(lines.size(), 1u);
    EXPECT_EQ(lines[0].find('\n'), std::string::npos);
    const std::string expected = "checkpoint: " + newest.string() + damage.message;
    EXPECT_EQ(lines[0].substr(0, expected.size()), expected);
    EXPECT_TRUE(lines[0].ends_with("; trying step 10")) << lines[0];
    save_checkpoint(folder.path(), checkpoint_of(20), 2);  // the repeated step replaces the damaged one
    expect_checkpoint(open_checkpoint(newest), 20);
  }
}

TEST(Checkpoint, WithoutAnyGoodOneThereIsNone) {
  const TemporaryFolder folder;
  flip_byte(save_checkpoint(folder.path(), checkpoint_of(10), 2) / "model.safetensors", 2000);
  flip_byte(save_checkpoint(folder.path(), checkpoint_of(20), 2) / "state.json", 100);
  std::vector<std::string> lines;
  EXPECT_FALSE(latest_good(folder.path(), [&](const std::string& line) { lines.push_back(line); }).has_value());
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_TRUE(lines[1].ends_with("; there is no older one")) << lines[1];
  const auto nobody = [](const std::string&) {};
  EXPECT_ERROR(checkpoint_to_continue(folder.path(), nobody), "all are damaged, expected a whole one to go on from");
  EXPECT_FALSE(checkpoint_to_continue(folder / "nothing", nobody).has_value());
}

TEST(Checkpoint, AnotherFormatIsNamed) {
  const TemporaryFolder folder;
  const fs::path path = save_checkpoint(folder.path(), checkpoint_of(1), 1);
  std::string text = read_bytes(path / "state.json");
  const std::string head = "{\n  \"checksum\": \"0123456789abcdef\",\n";
  std::string body = text.substr(head.size());
  body.replace(body.find("\"format\": 1"), 11, "\"format\": 2");
  char sum[17];
  std::snprintf(sum, sizeof sum, "%016llx", static_cast<unsigned long long>(checksum(body)));
  write_bytes(path / "state.json", "{\n  \"checksum\": \"" + std::string(sum) + "\",\n" + body);
  EXPECT_EQ(error_of([&] { open_checkpoint(path); }),
            "checkpoint: " + (path / "state.json").string() + ": has format 2, this program reads format 1");
}

TEST(Checkpoint, AnotherModelIsNamed) {
  const TemporaryFolder folder;
  const OpenCheckpoint saved = open_checkpoint(save_checkpoint(folder.path(), checkpoint_of(1), 1));
  const std::string source = "checkpoint: " + saved.model.path().string();
  const auto message = [&](const NamedTensors& targets) {
    return error_of([&] { load_tensors(saved.model, targets); });
  };
  NamedTensors targets = checkpoint_of(0).model;
  targets.emplace_back("layers.0.q", Tensor::zeros({2}));
  EXPECT_EQ(message(targets), source + ": has no tensor 'layers.0.q', which this model has");
  targets = checkpoint_of(0).model;
  targets.pop_back();
  EXPECT_EQ(message(targets), source + ": tensor 'head.bias' is not in this model");
  targets = checkpoint_of(0, 4).model;
  EXPECT_EQ(message(targets), source + ": tensor 'embed.weight' is f32 [300, 3], this model's is f32 [4, 3]");
  targets = checkpoint_of(0).model;
  targets[1].second = Tensor::zeros({7});
  EXPECT_EQ(message(targets), source + ": tensor 'head.bias' is bf16 [7], this model's is f32 [7]");
}

TEST(Checkpoint, AnotherConfigIsNamed) {
  const json::value saved = {{"layers", 4}, {"attention", {{"heads", 2}, {"k", 1}}}};
  const auto message = [&](const json::value& present) {
    return error_of([&] { check_same_config("runs/a/step-00000001", "model", saved, present); });
  };
  EXPECT_NO_THROW(check_same_config("runs/a/step-00000001", "model", saved, saved));
  EXPECT_EQ(message({{"layers", 6}, {"attention", {{"heads", 2}, {"k", 1}}}}),
            "checkpoint: runs/a/step-00000001: was made with model.layers 4, this run has 6");
  EXPECT_EQ(message({{"layers", 4}, {"attention", {{"heads", 2}, {"k", 2}}}}),
            "checkpoint: runs/a/step-00000001: was made with model.attention.k 1, this run has 2");
  EXPECT_EQ(message({{"layers", 4}, {"attention", {{"heads", 2}}}}),
            "checkpoint: runs/a/step-00000001: was made with model.attention.k 1, this run has no such key");
  EXPECT_EQ(message({{"layers", 4}, {"attention", {{"heads", 2}, {"k", 1}}}, {"width", 8}}),
            "checkpoint: runs/a/step-00000001: was made with no model.width, this run has 8");
}

TEST(Checkpoint, PlacesThatCannotBeWrittenAreNamed) {
  const TemporaryFolder folder;
  write_bytes(folder / "file", "x");
  EXPECT_EQ(error_of([&] { save_checkpoint(folder / "file", checkpoint_of(1), 1); }),
            "checkpoint: " + (folder / "file").string() + "/step-00000001 was not saved: cannot make the folder " +
                (folder / "file").string() + ": Not a directory");
  EXPECT_EQ(error_of([&] { save_checkpoint(folder.path(), checkpoint_of(-1), 1); }),
            "checkpoint: step -1 is out of range, expected at least 0");
  EXPECT_EQ(error_of([&] { save_checkpoint(folder.path(), checkpoint_of(1), 0); }),
            "checkpoint: keep 0 is out of range, expected at least 1");
}

// A limit on file sizes stands in for a full disk: writes fail halfway through model.safetensors.
TEST(Checkpoint, AFullDiskLeavesTheOlderOnesAndNoRubbish) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(10), 2);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1500, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = error_of([&] { save_checkpoint(folder.path(), checkpoint_of(20), 2); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, old_handler);
  const std::string expected = "checkpoint: " + (folder / "step-00000020").string() + " was not saved: write: cannot ";
  EXPECT_EQ(message.substr(0, expected.size()), expected);
  EXPECT_TRUE(message.ends_with(": File too large")) << message;
  EXPECT_EQ(entries_in(folder.path()), 1u);
  expect_checkpoint(latest_good(folder.path(), [](const std::string&) {}).value(), 10);
}

// --- kill -9 --------------------------------------------------------------------------------------------------------

constexpr const char* kFolderVariable = "SWITCHYARD_TEST_CHECKPOINT_FOLDER";

/// What the program that the test starts and kills does: it goes on from the latest good checkpoint and tells each
/// step that save_checkpoint() has called saved to the pipe at descriptor 3.
void write_until_killed(const fs::path& folder) {
  const auto good = latest_good(folder, [](const std::string&) {});
  for (std::int64_t step = good ? good->step + 1 : 1;; ++step) {
    save_checkpoint(folder, checkpoint_of(step), 2);
    ASSERT_EQ(::write(3, &step, sizeof step), static_cast<ssize_t>(sizeof step));
  }
}

/// Starts the writer, kills it after `microseconds` and returns the last step that it called saved, or `before`.
std::int64_t write_and_kill(const fs::path& folder, unsigned microseconds, std::int64_t before) {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], 3);
    const int null = ::open("/dev/null", O_WRONLY);
    ::dup2(null, 1);
    ::setenv(kFolderVariable, folder.c_str(), 1);
    ::execl("/proc/self/exe", "writer", "--gtest_filter=Checkpoint.SurvivesKillAtAnyMoment",
            static_cast<char*>(nullptr));
    ::_exit(127);
  }
  ::close(ends[1]);
  // The clock starts with the first checkpoint, so that slow starts kill no writer before it has written.
  std::int64_t step = 0, last = before;
  if (::read(ends[0], &step, sizeof step) == static_cast<ssize_t>(sizeof step)) last = step;
  ::usleep(microseconds);
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "the writer ended by itself";
  while (::read(ends[0], &step, sizeof step) == static_cast<ssize_t>(sizeof step)) last = step;
  ::close(ends[0]);
  return last;
}

TEST(Checkpoint, SurvivesKillAtAnyMoment) {
  // The writer is this same program started afresh: a fork without exec would inherit the state of OpenMP's threads.
  if (const char* folder_of_writer = ::getenv(kFolderVariable)) return write_until_killed(folder_of_writer);
  const TemporaryFolder folder;
  std::int64_t saved = 0;
  for (unsigned round = 0; round < 25; ++round) {
    const std::int64_t last = write_and_kill(folder.path(), 137 * round * round % 9001, saved);
    ASSERT_GT(last, saved) << "the writer made no headway in round " << round;
    const auto good = latest_good(folder.path(), [&](const std::string& line) {
      ADD_FAILURE() << "a killed writer left a damaged checkpoint: " << line;
    });
    ASSERT_TRUE(good.has_value());
    ASSERT_GE(good->step, last) << "a checkpoint that was called saved is gone";
    ASSERT_LE(good->step, last + 1);
    expect_checkpoint(*good, good->step);
    saved = good->step;
  }
}

}  // namespace
}  // namespace switchyard::train
